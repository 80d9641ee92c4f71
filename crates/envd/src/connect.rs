//! `envd connect`: a TCP connection out of the sandbox for `ssh -L` and `-D`, under the sandbox's own rules because it is made inside.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

/// Connects, then copies standard input to the connection and the connection to standard output, until both have ended. It writes one byte,
/// a zero, before anything else, so that the caller knows that the connection stands, and tells the end of the other end by itself ([`copy`]).
///
/// # Errors
/// The connection cannot be made, or breaks.
pub fn connect(host: &str, port: u16) -> io::Result<()> {
    copy(TcpStream::connect((host, port))?)
}

/// Copies standard input to a connection and the connection to standard output, after a first zero byte. Each direction ends by itself: when
/// the other end sends no more, the number of bytes that came of it is written to standard error, because the end of standard output
/// would be seen with the process's only. Whoever reads both may see this before the last bytes.
pub(crate) fn copy(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut output = io::stdout().lock();
    output.write_all(&[0])?;
    output.flush()?;
    let mut sending = stream.try_clone()?;
    let sender = thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut sending);
        let _ = sending.shutdown(Shutdown::Write);
    })?;
    let mut receiving = stream;
    let mut buffer = vec![0; 64 * 1024];
    let mut copied = 0_u64;
    loop {
        match receiving.read(&mut buffer)? {
            0 => break,
            count => {
                output.write_all(&buffer[..count])?;
                output.flush()?;
                copied += count as u64;
            }
        }
    }
    writeln!(io::stderr(), "{copied}")?;
    let _ = sender.join();
    Ok(())
}
