//! Answers DNS queries for the server's own domain, for which it is the only name server: the domain and every name below it have the
//! server's address. Answers are small and need no memory of who asked; there is nothing to transfer and nothing to update.

#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::PushError;
use domain::base::name::FromStrError;
use domain::base::{Message, MessageBuilder, Name, Rtype, Serial, StaticCompressor, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ns, Soa};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Maximum size of a query, and of a response over UDP.
const MAX_MESSAGE: usize = 1232;
/// How long resolvers keep an answer. Short, because a trial server's address changes.
const LIFETIME: Ttl = Ttl::from_secs(60);
/// Maximum number of connections over TCP, and the time that one has.
const MAX_CONNECTIONS: usize = 64;
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Which addresses the names have.
#[derive(Debug, Clone)]
pub enum Addresses {
    /// These.
    Fixed(Vec<IpAddr>),
    /// The address of this host by which whoever asks is reached.
    Reached,
}

/// The domain, and what is answered.
#[derive(Debug)]
pub struct Zone {
    name: Name<Vec<u8>>,
    addresses: Addresses,
}

/// The sockets on which queries are answered.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Opens both sockets.
    ///
    /// # Errors
    /// The address is not free.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address).await?;
        // Port 0 has become another one.
        let tcp = TcpListener::bind(udp.local_addr()?).await?;
        Ok(Self { udp, tcp })
    }

    /// Returns the address of both.
    ///
    /// # Errors
    /// Never for open sockets.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

impl Zone {
    /// Describes a domain.
    ///
    /// # Errors
    /// It is no DNS name.
    pub fn new(domain: &str, addresses: Addresses) -> Result<Self, FromStrError> {
        Ok(Self { name: Name::vec_from_str(domain)?, addresses })
    }

    /// Answers queries until the future is dropped.
    pub async fn serve(self, sockets: Sockets) {
        let zone = Arc::new(self);
        tokio::join!(serve_udp(&zone, &sockets.udp), serve_tcp(&zone, &sockets.tcp));
    }

    /// Returns the response to a message, or `None` if it is no query. `peer` is who asks.
    fn respond(&self, query: &[u8], peer: SocketAddr) -> Option<Vec<u8>> {
        let query = Message::from_slice(query).ok()?;
        if query.header().qr() {
            return None;
        }
        Some(self.answer(query, peer).unwrap_or_else(|_| refusal(query, Rcode::SERVFAIL)))
    }

    fn answer(&self, query: &Message<[u8]>, peer: SocketAddr) -> Result<Vec<u8>, PushError> {
        if query.header().opcode() != Opcode::QUERY {
            return Ok(refusal(query, Rcode::NOTIMP));
        }
        let Ok(question) = query.sole_question() else { return Ok(refusal(query, Rcode::FORMERR)) };
        let name = question.qname();
        if !name.ends_with(&self.name) || !matches!(question.qclass(), Class::IN | Class::ANY) {
            return Ok(refusal(query, Rcode::REFUSED));
        }
        let mut answer = builder().start_answer(query, Rcode::NOERROR)?;
        answer.header_mut().set_aa(true);
        let addresses = self.addresses(peer);
        let wants = |rtype| question.qtype() == rtype || question.qtype() == Rtype::ANY;
        let is_apex = name.name_eq(&self.name);
        let mut count = 0;
        for address in addresses {
            match address {
                IpAddr::V4(address) if wants(Rtype::A) => answer.push((name, LIFETIME, A::new(address)))?,
                IpAddr::V6(address) if wants(Rtype::AAAA) => {
                    answer.push((name, LIFETIME, Aaaa::new(address)))?;
                }
                _ => continue,
            }
            count += 1;
        }
        if is_apex && wants(Rtype::NS) {
            answer.push((name, LIFETIME, Ns::new(self.below("ns"))))?;
            count += 1;
        }
        if is_apex && wants(Rtype::SOA) {
            answer.push((name, LIFETIME, self.soa()))?;
            count += 1;
        }
        let mut authority = answer.authority();
        if count == 0 {
            // Every name exists; this one has no such records.
            authority.push((&self.name, LIFETIME, self.soa()))?;
        }
        let mut additional = authority.additional();
        if query.opt().is_some() {
            additional.opt(|opt| {
                opt.set_udp_payload_size(1232);
                Ok(())
            })?;
        }
        Ok(additional.finish().into_target())
    }

    fn soa(&self) -> Soa<Name<Vec<u8>>> {
        let hour = Ttl::from_secs(3600);
        Soa::new(self.below("ns"), self.below("hostmaster"), Serial(1), hour, hour, hour, LIFETIME)
    }

    /// Returns a name below the domain.
    fn below(&self, label: &str) -> Name<Vec<u8>> {
        Name::vec_from_str(&format!("{label}.{}", self.name)).unwrap_or_else(|_| self.name.clone())
    }

    fn addresses(&self, peer: SocketAddr) -> Vec<IpAddr> {
        match &self.addresses {
            Addresses::Fixed(addresses) => addresses.clone(),
            Addresses::Reached => reached_from(peer).into_iter().collect(),
        }
    }
}

/// Returns the address of this host on the way to a peer. Connecting a datagram socket chooses it and sends nothing.
fn reached_from(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = StdUdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

fn builder() -> MessageBuilder<StaticCompressor<Vec<u8>>> {
    MessageBuilder::from_target(StaticCompressor::new(Vec::new()))
        .expect("an empty vector has room for a header")
}

fn refusal(query: &Message<[u8]>, code: Rcode) -> Vec<u8> {
    let started = builder().start_answer(query, code);
    // Fails for questions that cannot be copied: then the header alone says it.
    started.map_or_else(|_| Vec::new(), |answer| answer.finish().into_target())
}

async fn serve_udp(zone: &Zone, socket: &UdpSocket) {
    let mut query = [0; MAX_MESSAGE];
    loop {
        match socket.recv_from(&mut query).await {
            Ok((length, peer)) => {
                if let Some(response) =
                    zone.respond(&query[..length], peer).filter(|response| !response.is_empty())
                {
                    // Fails if whoever asked cannot be reached.
                    let _ = socket.send_to(&response, peer).await;
                }
            }
            Err(error) => tracing::debug!(%error, "failed to receive a DNS query"),
        }
    }
}

async fn serve_tcp(zone: &Arc<Zone>, listener: &TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let zone = Arc::clone(zone);
                tokio::spawn(async move {
                    // Errors are those of whoever asks.
                    let _ = tokio::time::timeout(MAX_CONNECTION_TIME, converse(&zone, stream, peer)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection for DNS");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the queries of one connection.
async fn converse(zone: &Zone, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let mut query = [0; MAX_MESSAGE];
    loop {
        let length = usize::from(stream.read_u16().await?);
        let Some(query) = query.get_mut(..length) else { return Ok(()) };
        stream.read_exact(query).await?;
        let Some(response) = zone.respond(query, peer) else { return Ok(()) };
        let length = u16::try_from(response.len()).unwrap_or(0);
        stream.write_all(&[&length.to_be_bytes()[..], &response].concat()).await?;
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn zone() -> Zone {
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        Zone::new("sandboxes.example", Addresses::Fixed(addresses.to_vec())).unwrap()
    }

    fn query(name: &str, rtype: Rtype) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(7);
        builder.header_mut().set_rd(true);
        let mut builder = builder.question();
        builder.push((&Name::<Vec<u8>>::vec_from_str(name).unwrap(), rtype)).unwrap();
        builder.finish()
    }

    /// Returns the code, and the answers and authorities as text.
    fn ask(zone: &Zone, name: &str, rtype: Rtype) -> (Rcode, Vec<String>) {
        let response = zone.respond(&query(name, rtype), "127.0.0.1:5353".parse().unwrap()).unwrap();
        let response = Message::from_octets(response).unwrap();
        assert!(response.header().qr() && response.header().id() == 7);
        let answers = response.answer().unwrap().chain(response.authority().unwrap());
        let text = |record: Result<domain::base::ParsedRecord<'_, _>, _>| {
            let record = record.unwrap();
            let record = record.to_any_record::<domain::rdata::AllRecordData<_, _>>().unwrap();
            format!("{} {}", record.rtype(), record.data())
        };
        (response.header().rcode(), answers.map(text).collect())
    }

    #[test]
    fn every_name_below_the_domain_has_the_servers_addresses() {
        let zone = zone();
        for name in [
            "sandboxes.example",
            "api.sandboxes.example",
            "49983-iabc.SandBoxes.Example",
            "a.b.sandboxes.example",
        ] {
            assert_eq!(
                ask(&zone, name, Rtype::A),
                (Rcode::NOERROR, vec!["A 192.0.2.1".to_owned()]),
                "{name}"
            );
            assert_eq!(ask(&zone, name, Rtype::AAAA), (Rcode::NOERROR, vec!["AAAA 2001:db8::1".to_owned()]));
        }
        let (code, records) = ask(&zone, "api.sandboxes.example", Rtype::HTTPS);
        assert!(
            code == Rcode::NOERROR && records.len() == 1 && records[0].starts_with("SOA "),
            "{records:?}"
        );
        let (_, records) = ask(&zone, "sandboxes.example", Rtype::NS);
        assert_eq!(records, ["NS ns.sandboxes.example."]);
        let (_, records) = ask(&zone, "sandboxes.example", Rtype::ANY);
        assert_eq!(records.len(), 4, "{records:?}");
    }

    #[test]
    fn other_names_and_messages_are_refused() {
        let zone = zone();
        for name in ["example", "example.com", "badsandboxes.example"] {
            assert_eq!(ask(&zone, name, Rtype::A), (Rcode::REFUSED, vec![]), "{name}");
        }
        let peer = "127.0.0.1:5353".parse().unwrap();
        let mut response = query("api.sandboxes.example", Rtype::A);
        response[2] |= 0x80;
        assert_eq!(zone.respond(&response, peer), None, "no answers to answers");
        assert_eq!(zone.respond(b"short", peer), None);
        let mut update = query("api.sandboxes.example", Rtype::SOA);
        update[2] |= 5 << 3;
        let response = zone.respond(&update, peer).unwrap();
        assert_eq!(Message::from_octets(response).unwrap().header().rcode(), Rcode::NOTIMP);
    }

    #[tokio::test]
    async fn queries_are_answered_over_udp_and_tcp_with_the_address_that_is_reached() {
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = sockets.address().unwrap();
        let serving = tokio::spawn(Zone::new("x.example", Addresses::Reached).unwrap().serve(sockets));
        let query = query("api.x.example", Rtype::A);
        let is_answer = |response: &[u8]| response.ends_with(&[127, 0, 0, 1]);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&query, address).await.unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).await.unwrap();
        assert!(is_answer(&buffer[..length]));
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
            stream.write_all(&query).await.unwrap();
            let length = usize::from(stream.read_u16().await.unwrap());
            stream.read_exact(&mut buffer[..length]).await.unwrap();
            assert!(is_answer(&buffer[..length]));
        }
        serving.abort();
    }

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic_or_answer_at_length(
            changes in proptest::collection::vec((0usize..64, proptest::prelude::any::<u8>()), 0..8),
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
        ) {
            let mut message = query("49983-x.sandboxes.example", Rtype::ANY);
            for (at, value) in changes {
                let at = at % message.len();
                message[at] = value;
            }
            for asked in [&message, &noise] {
                let answer = zone().respond(asked, "127.0.0.1:5353".parse().unwrap());
                // Nobody is worth forging as the sender of a query.
                proptest::prop_assert!(answer.is_none_or(|answer| answer.len() <= 8 * asked.len().max(64)));
            }
        }
    }
}
