//! `envd connect`: a TCP connection out of the sandbox for `ssh -L` and `-D`, under the sandbox's own rules because it is made inside.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

/// Connects, then copies standard input to the connection and the connection to standard output, until both have ended. It writes one byte,
/// a zero, before anything else, so that the caller knows that the connection stands.
///
/// # Errors
/// The connection cannot be made, or breaks.
pub fn connect(host: &str, port: u16) -> io::Result<()> {
    let stream = TcpStream::connect((host, port))?;
    stream.set_nodelay(true)?;
    let mut output = io::stdout().lock();
    output.write_all(&[0])?;
    output.flush()?;
    let mut sending = stream.try_clone()?;
    // Ends with the process: a read of standard input cannot be ended from outside.
    thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut sending);
        let _ = sending.shutdown(Shutdown::Write);
    })?;
    let mut receiving = stream;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io::Read::read(&mut receiving, &mut buffer)? {
            0 => return Ok(()),
            count => {
                output.write_all(&buffer[..count])?;
                output.flush()?;
            }
        }
    }
}
