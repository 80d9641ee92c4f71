//! DNS of sandboxes: queries arrive at our listener, are checked against the egress policy, and are
//! forwarded to the host's resolvers.
//!
//! Packets are forwarded as they are; only the header and the name of the query are read. Where
//! the policy restricts names, a query for any other name is refused, so that DNS is no way out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::policy::EgressPolicy;

/// Maximum number of queries in progress per sandbox; more are dropped, as by a busy resolver.
pub(crate) const MAX_QUERIES: usize = 128;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a TCP connection may send no query.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_PACKET: usize = 4096;
const HEADER: usize = 12;
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// DNS resolvers of the host, in order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers(Vec<SocketAddr>);

impl Resolvers {
    /// Creates a list of these servers.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self(servers)
    }

    /// Parses the `nameserver` lines of `/etc/resolv.conf`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let servers = text.lines().filter_map(|line| {
            let address = line.trim().strip_prefix("nameserver")?.trim();
            Some(SocketAddr::new(address.parse().ok()?, 53))
        });
        Self(servers.collect())
    }

    pub(crate) fn first(&self) -> Option<SocketAddr> {
        self.0.first().copied()
    }
}

/// Serves DNS over UDP until cancelled.
pub(crate) async fn serve(
    socket: Arc<UdpSocket>,
    resolvers: &Resolvers,
    policy: impl Fn() -> Arc<EgressPolicy>,
    queries: &Arc<Semaphore>,
    stop: CancellationToken,
) {
    let mut packet = vec![0u8; MAX_PACKET];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
        let query = packet[..length].to_vec();
        let Some(name) = query_name(&query) else { continue };
        let policy = policy();
        if policy.restricts_names() && !policy.permits_domain(&name) {
            debug!(name, "DNS query refused");
            let _ = socket.send_to(&error_response(query, REFUSED), client).await;
            continue;
        }
        let Ok(permit) = queries.clone().try_acquire_owned() else { continue };
        let (socket, resolvers) = (socket.clone(), resolvers.clone());
        let answer = async move {
            let answer =
                forward(&resolvers, &query).await.unwrap_or_else(|| error_response(query, SERVER_FAILURE));
            let _ = socket.send_to(&answer, client).await;
            drop(permit);
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(answer));
    }
}

/// Serves DNS over TCP: forwards queries and answers in turn, each with its length before it.
/// Returns after a message that is not a plain query.
///
/// # Errors
/// Either side closes the connection, or takes too long.
pub(crate) async fn relay(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    loop {
        let query = read_message(&mut client).await?;
        if query_name(&query).is_none() {
            return Ok(());
        }
        write_message(&mut server, &query).await?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, read_message(&mut server)).await;
        write_message(&mut client, &answer.map_err(|_| io::ErrorKind::TimedOut)??).await?;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = tokio::time::timeout(IDLE_TIMEOUT, stream.read_u16())
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// Forwards a query to the resolvers in turn; returns the first answer.
async fn forward(resolvers: &Resolvers, query: &[u8]) -> Option<Vec<u8>> {
    for server in &resolvers.0 {
        match tokio::time::timeout(ANSWER_TIMEOUT, forward_to(*server, query)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => debug!(%server, %error, "DNS resolver failed"),
            Err(_) => debug!(%server, "DNS resolver did not answer"),
        }
    }
    None
}

async fn forward_to(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let from: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    // A fresh socket for each query: a random port and a connected peer make forged answers hard.
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0u8; MAX_PACKET];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= HEADER && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// Returns the addresses of a name, IPv4 first, from the resolvers that the sandbox uses.
pub(crate) async fn lookup(resolvers: &Resolvers, name: &str) -> Vec<IpAddr> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    let (v4, v6) =
        tokio::join!(lookup_type(resolvers, name, TYPE_A), lookup_type(resolvers, name, TYPE_AAAA));
    v4.into_iter().chain(v6).collect()
}

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

async fn lookup_type(resolvers: &Resolvers, name: &str, kind: u16) -> Vec<IpAddr> {
    let Some(query) = encode_query(name, kind) else { return Vec::new() };
    match forward(resolvers, &query).await {
        Some(answer) => addresses(&answer, kind).unwrap_or_default(),
        None => Vec::new(),
    }
}

fn encode_query(name: &str, kind: u16) -> Option<Vec<u8>> {
    // Unpredictable enough together with the random source port, which the kernel chooses.
    let id = u16::try_from(std::process::id() & 0xffff).ok()? ^ u16::try_from(name.len()).ok()?;
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    (packet.len() <= 512).then_some(packet)
}

/// Returns the addresses of record type `kind` in an answer. Aliases need no following: resolvers
/// put the whole chain into one answer.
fn addresses(packet: &[u8], kind: u16) -> Option<Vec<IpAddr>> {
    let count = usize::from(u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]));
    let mut at = skip_name(packet, HEADER)? + 4;
    let mut found = Vec::new();
    for _ in 0..count {
        at = skip_name(packet, at)?;
        let record = packet.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([record[8], record[9]]));
        let data = packet.get(at + 10..at + 10 + length)?;
        if u16::from_be_bytes([record[0], record[1]]) == kind {
            if let Ok(v4) = <[u8; 4]>::try_from(data) {
                found.push(IpAddr::from(v4));
            } else if let Ok(v6) = <[u8; 16]>::try_from(data) {
                found.push(IpAddr::from(v6));
            }
        }
        at += 10 + length;
    }
    Some(found)
}

fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

/// Returns the name in a query, in lower case and without the final dot; `None` if the packet is
/// not a plain query.
fn query_name(packet: &[u8]) -> Option<String> {
    let is_answer = *packet.get(2)? & 0x80 != 0;
    let is_query = *packet.get(2)? & 0x78 == 0;
    let count = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    // One query and no other records: an update or notification would seem to come from the
    // host.
    if is_answer || !is_query || count(4)? != 1 || count(6)? != 0 || count(8)? != 0 {
        return None;
    }
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            const ZONE_TRANSFERS: [u16; 2] = [251, 252];
            return (!ZONE_TRANSFERS.contains(&count(at + 1)?)).then(|| labels.join("."));
        }
        if length > 63 || at > HEADER + 255 {
            return None;
        }
        let label = packet.get(at + 1..at + 1 + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + length;
    }
}

/// Turns a query into an error response with this code.
fn error_response(mut packet: Vec<u8>, code: u8) -> Vec<u8> {
    packet[2] |= 0x80;
    packet[3] = 0x80 | code;
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_name_of_a_query() {
        let packet = encode_query("WWW.Example.com", TYPE_A).unwrap();
        assert_eq!(query_name(&packet).unwrap(), "www.example.com");
        assert_eq!(error_response(packet, REFUSED)[3] & 15, REFUSED);
    }

    #[test]
    fn only_plain_queries_are_forwarded() {
        let plain = encode_query("a.example", TYPE_A).unwrap();
        let with = |at: usize, value: u8| {
            let mut packet = plain.clone();
            packet[at] = value;
            query_name(&packet)
        };
        assert!(with(2, 1).is_some());
        for opcode in 1..16u8 {
            assert_eq!(with(2, opcode << 3), None, "opcode {opcode}");
        }
        assert_eq!(with(7, 1), None, "a query with an answer record");
        assert_eq!(with(9, 1), None, "a query with an authority record");
        for transfer in [251, 252] {
            assert_eq!(query_name(&encode_query("a.example", transfer).unwrap()), None);
        }
    }

    #[test]
    fn reads_addresses_behind_an_alias() {
        let mut packet = encode_query("a.example", TYPE_A).unwrap();
        packet[7] = 2;
        packet.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 3, 1, b'b', 0]);
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        assert_eq!(addresses(&packet, TYPE_A).unwrap(), vec![IpAddr::from([192, 0, 2, 7])]);
    }

    #[test]
    fn reads_the_hosts_resolvers() {
        let resolvers =
            Resolvers::parse("# x\nnameserver 192.0.2.1\nsearch a\nnameserver 2001:db8::1\nnameserver x\n");
        assert_eq!(resolvers.0, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = query_name(&packet);
            let _ = addresses(&packet, TYPE_A);
        }
    }
}
