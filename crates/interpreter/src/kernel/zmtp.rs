//! A client of ZMTP 3.0 over abstract Unix sockets, with the parts that Jupyter needs: NULL security, DEALER and SUB, whole messages.
//! The existing Rust library is not used: it brings a second event loop for Unix sockets and retries connects after fixed delays.
//! Nothing is retried here; a violation of the protocol is an error.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The frames of a message.
pub(crate) type Message = Vec<Vec<u8>>;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Maximum size of a frame, bytes. Figures have some megabytes.
const MAX_FRAME: u64 = 1 << 30;

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: BufReader<OwnedReadHalf>,
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: OwnedWriteHalf,
}

/// Connects to an abstract address as `kind`, `DEALER` or `SUB`. A SUB subscribes to all messages.
pub(crate) async fn connect(name: &str, kind: &str) -> io::Result<(Sender, Receiver)> {
    // Does not block: there are no other clients, so the queue has room.
    let stream = std::os::unix::net::UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    let (read, mut write) = UnixStream::from_std(stream)?.into_split();
    let mut read = BufReader::new(read);
    write.write_all(&greeting()).await?;
    let mut theirs = [0; 64];
    read.read_exact(&mut theirs).await?;
    if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 || &theirs[12..16] != b"NULL" {
        return Err(invalid("the peer does not speak ZMTP 3 without security"));
    }
    write.write_all(&command(&ready(kind))).await?;
    let mut receiver = Receiver { stream: read };
    let (flags, body) = receiver.frame().await?;
    if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
        return Err(invalid("the peer refused the handshake"));
    }
    let mut sender = Sender { stream: write };
    if kind == "SUB" {
        sender.send(&[b"\x01".to_vec()]).await?;
    }
    Ok((sender, receiver))
}

fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn ready(kind: &str) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", kind), ("Identity", "")] {
        // Both are a few bytes long.
        body.push(u8::try_from(name.len()).unwrap_or_default());
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&u32::try_from(value.len()).unwrap_or_default().to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body
}

fn command(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, COMMAND, body);
    out
}

fn put(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(short) => out.extend_from_slice(&[flags, short]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

impl Sender {
    pub(crate) async fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        let mut out = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            put(&mut out, if index + 1 < frames.len() { MORE } else { 0 }, frame);
        }
        self.stream.write_all(&out).await
    }
}

impl Receiver {
    /// Returns the next message. Not cancel safe: the rest of a message would be taken for a new one.
    pub(crate) async fn receive(&mut self) -> io::Result<Message> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame().await?;
            if flags & COMMAND != 0 {
                continue;
            }
            frames.push(body);
            if flags & MORE == 0 {
                return Ok(frames);
            }
        }
    }

    async fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let flags = self.stream.read_u8().await?;
        let length = match flags & LONG {
            0 => u64::from(self.stream.read_u8().await?),
            _ => self.stream.read_u64().await?,
        };
        if length > MAX_FRAME {
            return Err(invalid("a message is too large"));
        }
        // Grows with the bytes that arrive, not with the announced size.
        let mut body = Vec::new();
        let read = (&mut self.stream).take(length).read_to_end(&mut body).await?;
        if read as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((flags, body))
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    fn listen(name: &str) -> UnixListener {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        UnixListener::from_std(listener).unwrap()
    }

    /// A server that does the handshake and then sends every message back.
    async fn echo(listener: UnixListener) {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut receiver = Receiver { stream: BufReader::new(read) };
        let mut theirs = [0; 64];
        receiver.stream.read_exact(&mut theirs).await.unwrap();
        assert_eq!(theirs, greeting());
        write.write_all(&greeting()).await.unwrap();
        write.write_all(&command(&ready("ROUTER"))).await.unwrap();
        let (flags, body) = receiver.frame().await.unwrap();
        assert_eq!((flags, &body[..17]), (COMMAND, &b"\x05READY\x0bSocket-Type"[..17]));
        let mut sender = Sender { stream: write };
        while let Ok(message) = receiver.receive().await {
            sender.stream.write_all(&command(b"\x04PING\0\0")).await.unwrap();
            sender.send(&message).await.unwrap();
        }
    }

    #[tokio::test]
    async fn short_and_long_frames_are_transferred_and_commands_are_skipped() {
        let name = uuid::Uuid::new_v4().to_string();
        let listener = listen(&name);
        tokio::spawn(echo(listener));
        let (mut sender, mut receiver) = connect(&name, "DEALER").await.unwrap();
        for message in [vec![b"a".to_vec(), vec![], vec![7; 300]], vec![vec![1; 100_000]]] {
            sender.send(&message).await.unwrap();
            assert_eq!(receiver.receive().await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_peer_with_another_protocol_is_an_error() {
        let name = uuid::Uuid::new_v4().to_string();
        let listener = listen(&name);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[b'x'; 64]).await.unwrap();
            let _ = stream.read_u8().await;
        });
        let error = connect(&name, "SUB").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
