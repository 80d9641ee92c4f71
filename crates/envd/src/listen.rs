//! `envd listen` and `envd take`: connections to a port inside the sandbox for `ssh -R`. The one listens, writes a line for each connection,
//! and keeps it until the other, a process of its own for each, is handed it. So each connection has the flow control of its own process.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};

use crate::connect;

/// Connections that wait to be taken; further ones are closed.
const MAX_WAITING: usize = 64;

/// Listens on a port, 0 for any, and writes it; then `<number> <port of the other end>` for each connection. Ends with an error only.
///
/// # Errors
/// The port is not free, or standard output is closed.
pub fn listen(address: IpAddr, port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((address, port))?;
    let handing = UnixListener::bind_addr(&handover(std::process::id())?)?;
    let waiting = Mutex::new(HashMap::new());
    tell(&listener.local_addr()?.port().to_string())?;
    thread::scope(|scope| {
        scope.spawn(|| hand_over(&handing, &waiting));
        let accepted = accept(&listener, &waiting);
        // The other thread ends with the process.
        eprintln!("envd: {accepted:?}");
        std::process::exit(1);
    })
}

/// Accepts connections for as long as somebody reads of them.
fn accept(listener: &TcpListener, waiting: &Mutex<HashMap<u64, TcpStream>>) -> io::Result<()> {
    for number in 0.. {
        let (stream, peer) = listener.accept()?;
        {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_WAITING {
                continue;
            }
            waiting.insert(number, stream);
        }
        tell(&format!("{number} {}", peer.port()))?;
    }
    Ok(())
}

/// Hands connections to processes of the same user.
fn hand_over(handing: &UnixListener, waiting: &Mutex<HashMap<u64, TcpStream>>) {
    let own = rustix::process::getuid();
    for taker in handing.incoming().flatten() {
        let mut number = [0; 8];
        let mut taker = taker;
        let is_same_user = sockopt::socket_peercred(&taker).is_ok_and(|peer| peer.uid == own);
        if !is_same_user || taker.read_exact(&mut number).is_err() {
            continue;
        }
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = waiting.remove(&u64::from_be_bytes(number)) {
            let _ = send(&taker, &stream);
        }
    }
}

/// Takes a connection of the process that listens, and copies as `envd connect` does.
///
/// # Errors
/// There is no such process or connection.
pub fn take(listening: u32, number: u64) -> io::Result<()> {
    let mut handing = UnixStream::connect_addr(&handover(listening)?)?;
    handing.write_all(&number.to_be_bytes())?;
    connect::copy(TcpStream::from(receive(&handing)?))
}

fn handover(listening: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("cofferdam-ssh-{listening}"))
}

fn tell(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

fn send(to: &UnixStream, stream: &TcpStream) -> io::Result<()> {
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such connection"))
}
