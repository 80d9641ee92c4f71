//! Asks the host's resolvers: over UDP from a port and with an id that are new for each query, and over TCP what does not fit.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use domain::base::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tracing::debug;

use super::Resolvers;
use super::message::{MAX_DATAGRAM, Question};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the resolvers in turn; returns the first response.
pub(super) async fn ask(resolvers: &Resolvers, question: &Question) -> Option<Arc<[u8]>> {
    for server in &resolvers.0 {
        match tokio::time::timeout(ANSWER_TIMEOUT, ask_one(*server, question)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => debug!(%server, %error, "DNS resolver failed"),
            Err(_) => debug!(%server, "DNS resolver did not answer"),
        }
    }
    None
}

async fn ask_one(server: SocketAddr, question: &Question) -> io::Result<Arc<[u8]>> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = u16::from_ne_bytes(id);
    let query = question.query(id);
    let answer = over_udp(server, question, &query, id).await?;
    if Message::from_slice(&answer).is_ok_and(|answer| answer.header().tc()) {
        return over_tcp(server, question, &query, id).await;
    }
    Ok(answer)
}

async fn over_udp(server: SocketAddr, question: &Question, query: &[u8], id: u16) -> io::Result<Arc<[u8]>> {
    let from: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel chooses a random port, and takes packets of the connected peer only.
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    // Some resolvers send more than was asked for.
    let mut answer = vec![0u8; 4 * usize::from(MAX_DATAGRAM)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if is_answer(&answer[..length], question, id) {
            return Ok(answer[..length].into());
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question, query: &[u8], id: u16) -> io::Result<Arc<[u8]>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream, usize::from(u16::MAX)).await?;
    if !is_answer(&answer, question, id) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a response to another question"));
    }
    Ok(answer.into())
}

fn is_answer(packet: &[u8], question: &Question, id: u16) -> bool {
    Message::from_slice(packet).is_ok_and(|answer| question.is_answered_by(answer, id))
}

/// Reads a message with its length before it, of at most `limit` bytes.
pub(super) async fn read_message(stream: &mut TcpStream, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
