//! The way of a query through the server, with a resolver of our own on loopback.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::base::iana::{Class, Opcode};
use domain::base::{MessageBuilder, Name, Serial, Ttl};
use domain::rdata::{A, AllRecordData, Cname, Soa, Txt};
use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;
use crate::policy::EgressPolicy;

type Wire = Vec<u8>;

fn name(text: &str) -> Name<Vec<u8>> {
    text.parse().unwrap()
}

/// A query as a guest sends it.
fn query(text: &str, rtype: Rtype) -> Wire {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name(text), rtype)).unwrap();
    builder.finish()
}

/// What a resolver answers: an alias with its address and records that nobody asked for, no such name, or a large text.
fn answer(query: &[u8]) -> Wire {
    let query = Message::from_slice(query).unwrap();
    let question = query.sole_question().unwrap();
    let asked: Name<Vec<u8>> = domain::base::ToName::to_name(question.qname());
    if asked == name("missing.example") {
        let mut builder = MessageBuilder::new_vec().start_answer(query, Rcode::NXDOMAIN).unwrap().authority();
        let soa = Soa::new(
            name("ns.example"),
            name("me.example"),
            Serial(1),
            Ttl::ZERO,
            Ttl::ZERO,
            Ttl::ZERO,
            Ttl::from_secs(20),
        );
        builder.push((name("example"), 100, soa)).unwrap();
        return builder.finish();
    }
    let mut builder = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
    if question.qtype() == Rtype::TXT {
        for number in 0..30u8 {
            let text = Txt::<Vec<u8>>::build_from_slice(&[number; 200]).unwrap();
            builder.push((&asked, 60, text)).unwrap();
        }
        return builder.finish();
    }
    builder.push((&asked, 60, Cname::new(name("b.example")))).unwrap();
    builder.push((name("b.example"), 1000, A::from_octets(192, 0, 2, 7))).unwrap();
    builder.push((name("bank.example"), 60, A::from_octets(192, 0, 2, 66))).unwrap();
    let mut builder = builder.additional();
    builder.push((name("bank.example"), 60, A::from_octets(192, 0, 2, 66))).unwrap();
    builder.finish()
}

/// A resolver over UDP and TCP. It sends two forged responses before each right one, and remembers what it was sent.
struct Resolver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Wire>>>,
    over_tcp: Arc<AtomicUsize>,
}

impl Resolver {
    async fn start() -> Self {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let (seen, over_tcp) = (Arc::<Mutex<Vec<Wire>>>::default(), Arc::<AtomicUsize>::default());
        tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut packet = [0; 4096];
                loop {
                    let (length, client) = udp.recv_from(&mut packet).await.unwrap();
                    seen.lock().push(packet[..length].to_vec());
                    let right = answer(&packet[..length]);
                    let mut other_id = right.clone();
                    other_id[0] ^= 1;
                    let mut other_name = right.clone();
                    other_name[13] ^= 1;
                    let mut cut = right[..right.len().min(500)].to_vec();
                    if right.len() > 1232 {
                        cut.truncate(12 + 5 + name_length(&right));
                        (cut[2], cut[6], cut[7]) = (cut[2] | 2, 0, 0);
                    } else {
                        cut = right;
                    }
                    for forged in [other_id, other_name, cut] {
                        udp.send_to(&forged, client).await.unwrap();
                    }
                }
            }
        });
        tokio::spawn({
            let over_tcp = Arc::clone(&over_tcp);
            async move {
                loop {
                    let (mut client, _) = tcp.accept().await.unwrap();
                    over_tcp.fetch_add(1, Ordering::Relaxed);
                    let query = upstream::read_message(&mut client, 4096).await.unwrap();
                    upstream::write_message(&mut client, &answer(&query)).await.unwrap();
                }
            }
        });
        Self { address, seen, over_tcp }
    }

    fn dns(&self) -> Arc<Dns> {
        Arc::new(Dns::new(Resolvers::new(vec![self.address]), DnsTotal::default()))
    }
}

/// Size of the name of a message's question, without the final byte.
fn name_length(packet: &[u8]) -> usize {
    packet[12..].iter().position(|&byte| byte == 0).unwrap()
}

async fn ask(dns: &Dns, policies: &Policies, packet: &[u8], limit: usize) -> Wire {
    match read(packet, policies) {
        Ok(query) => dns.respond(&query, limit).await.expect("within the limits"),
        Err(Rejection::Respond(response)) => response,
        Err(Rejection::Ignore) => panic!("ignored"),
    }
}

fn records(response: &[u8]) -> Vec<String> {
    let message = Message::from_slice(response).unwrap();
    let parsed = message.answer().unwrap().map(|record| {
        record.unwrap().into_any_record::<AllRecordData<_, domain::base::ParsedName<_>>>().unwrap()
    });
    let shown = parsed.map(|record| {
        format!("{} {} {}", record.owner(), record.ttl().as_secs(), record.data()).to_lowercase()
    });
    shown.collect()
}

fn code(response: &[u8]) -> Rcode {
    Message::from_slice(response).unwrap().header().rcode()
}

#[tokio::test]
async fn only_what_was_asked_for_is_returned() {
    let resolver = Resolver::start().await;
    let (dns, policy) = (resolver.dns(), Policies::from(EgressPolicy::default()));
    let response = ask(&dns, &policy, &query("WwW.Example", Rtype::A), 512).await;
    let message = Message::from_slice(&response).unwrap();
    assert_eq!(message.header().id(), 0x1234);
    assert_eq!(message.sole_question().unwrap().qname().to_string(), "WwW.Example", "as it was asked");
    assert_eq!(records(&response), ["www.example 60 b.example.", "b.example 1000 192.0.2.7"]);
    assert_eq!(message.header_counts().arcount(), 0);
    let expected = vec![IpAddr::from([192, 0, 2, 7])];
    assert_eq!(dns.lookup_type("www.example", Rtype::A).await, expected);
}

#[tokio::test]
async fn resolvers_see_a_query_of_ours() {
    let resolver = Resolver::start().await;
    let dns = resolver.dns();
    let mut guests = query("WWW.example", Rtype::A);
    // Bytes after the message, and an option that names the client.
    guests[11] = 1;
    guests.extend([0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 8, 0, 8, 0, 4, 1, 2, 3, 4]);
    guests.extend(b"carried out");
    for _ in 0..2 {
        // Not the same question, so that it is asked twice.
        guests[3] ^= 0x10;
        ask(&dns, &Policies::from(EgressPolicy::default()), &guests, 512).await;
    }
    let seen = resolver.seen.lock().clone();
    let ids: Vec<_> = seen.iter().map(|query| [query[0], query[1]]).collect();
    assert!(ids[0] != ids[1] || ids[0] != [0x12, 0x34], "ids are random");
    for query in &seen {
        let message = Message::from_slice(query).unwrap();
        assert_eq!(message.sole_question().unwrap().qname().to_string(), "www.example");
        let opt = message.opt().expect("our own");
        assert!(opt.opt().is_empty() && opt.dnssec_ok() && opt.udp_payload_size() == 1232);
        assert_eq!(query.len(), 12 + 13 + 4 + 11, "and nothing else");
    }
}

#[tokio::test]
async fn large_responses_come_over_tcp() {
    let resolver = Resolver::start().await;
    let (dns, policy) = (resolver.dns(), Policies::from(EgressPolicy::default()));
    let whole = ask(&dns, &policy, &query("large.example", Rtype::TXT), 65_535).await;
    assert_eq!((records(&whole).len(), resolver.over_tcp.load(Ordering::Relaxed)), (30, 1));
    let cut = ask(&dns, &policy, &query("large.example", Rtype::TXT), 512).await;
    let header = Message::from_slice(&cut).unwrap().header();
    assert!(header.tc() && records(&cut).is_empty() && cut.len() <= 512);
}

#[tokio::test(start_paused = true)]
async fn responses_are_stored_for_their_time_and_after_the_policy() {
    let resolver = Resolver::start().await;
    let (dns, policy) = (resolver.dns(), Policies::from(EgressPolicy::default()));
    let asked = || resolver.seen.lock().len();
    let packet = query("www.example", Rtype::A);
    ask(&dns, &policy, &packet, 512).await;
    tokio::time::advance(Duration::from_secs(59)).await;
    let response = ask(&dns, &policy, &packet, 512).await;
    assert_eq!(
        (records(&response), asked()),
        (vec!["www.example 1 b.example.".into(), "b.example 941 192.0.2.7".into()], 1)
    );
    let restricted = EgressPolicy { allow_domains: vec!["other.example".into()], ..EgressPolicy::deny_all() };
    let restricted = Policies::from(restricted);
    assert_eq!(code(&ask(&dns, &restricted, &packet, 512).await), Rcode::REFUSED);
    tokio::time::advance(Duration::from_secs(1)).await;
    ask(&dns, &policy, &packet, 512).await;
    assert_eq!(asked(), 2);

    let missing = query("missing.example", Rtype::A);
    for _ in 0..2 {
        assert_eq!(code(&ask(&dns, &policy, &missing, 512).await), Rcode::NXDOMAIN);
    }
    assert_eq!(asked(), 3);
    tokio::time::advance(Duration::from_secs(20)).await;
    ask(&dns, &policy, &missing, 512).await;
    assert_eq!(asked(), 4);
    ask(&resolver.dns(), &policy, &missing, 512).await;
    assert_eq!(asked(), 5, "another sandbox has its own");
}

#[tokio::test]
async fn queries_are_answered_over_both_protocols() {
    let resolver = Resolver::start().await;
    let (dns, stop) = (resolver.dns(), CancellationToken::new());
    let policy = || Policies::from(EgressPolicy::default());
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    let address = socket.local_addr().unwrap();
    let serve = {
        let (dns, stop) = (Arc::clone(&dns), stop.clone());
        async move { dns.serve_udp(socket, policy, stop).await }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(serve));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(address).await.unwrap();
    for ignored in [&b"x"[..], &answer(&query("www.example", Rtype::A))] {
        client.send(ignored).await.unwrap();
    }
    client.send(&query("www.example", Rtype::A)).await.unwrap();
    let mut packet = [0; 600];
    let length = client.recv(&mut packet).await.unwrap();
    assert_eq!(records(&packet[..length]).len(), 2);
    stop.cancel();

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        dns.serve_tcp(client, policy).await
    });
    let mut client = TcpStream::connect(address).await.unwrap();
    for _ in 0..CONNECTION_QUERIES {
        upstream::write_message(&mut client, &query("www.example", Rtype::A)).await.unwrap();
        assert_eq!(records(&upstream::read_message(&mut client, 600).await.unwrap()).len(), 2);
    }
    assert!(upstream::read_message(&mut client, 600).await.is_err(), "enough for one connection");
    assert!(served.await.unwrap().is_ok());
}

#[test]
fn only_plain_questions_are_asked() {
    let refusal = |packet: &[u8]| match Query::parse(packet) {
        Err(Rejection::Respond(response)) => {
            assert_eq!((response[..2].to_vec(), response[2] & 0x80), (vec![0x12, 0x34], 0x80));
            Some(code(&response))
        }
        Err(Rejection::Ignore) => panic!("ignored"),
        Ok(_) => None,
    };
    let plain = query("a.example", Rtype::A);
    let with = |at: usize, value: u8| {
        let mut packet = plain.clone();
        packet[at] = value;
        refusal(&packet)
    };
    assert_eq!(with(2, 1), None);
    for opcode in 1..16u8 {
        assert_eq!(with(2, opcode << 3), Some(Rcode::NOTIMP), "opcode {opcode}");
        let mut packet = plain.clone();
        packet[2] = opcode << 3;
        let Err(Rejection::Respond(response)) = Query::parse(&packet) else { panic!("accepted") };
        assert_eq!(Message::from_slice(&response).unwrap().header().opcode(), Opcode::from_int(opcode));
    }
    for (at, what) in [(5, "no question"), (7, "an answer"), (9, "an authority"), (11, "two more records")] {
        let value = if at == 5 { 0 } else { 2 };
        assert_eq!(with(at, value), Some(Rcode::FORMERR), "{what}");
    }
    assert_eq!(with(5, 2), Some(Rcode::FORMERR), "two questions");
    let class = plain.len() - 1;
    assert_eq!(with(class, 3), Some(Rcode::REFUSED), "class CH");
    for rtype in [10, 41, 249, 250, 251, 252, 255, 65_280] {
        assert_eq!(refusal(&query("a.example", Rtype::from_int(rtype))), Some(Rcode::NOTIMP), "type {rtype}");
    }
    for rtype in [Rtype::A, Rtype::AAAA, Rtype::HTTPS, Rtype::SRV, Rtype::CAA, Rtype::DS] {
        assert_eq!(refusal(&query("a.example", rtype)), None, "{rtype}");
    }
    assert_eq!(Query::parse(&answer(&plain)).err(), Some(Rejection::Ignore));
}

#[test]
fn a_dot_in_a_label_is_not_taken_for_a_separator() {
    let mut builder = MessageBuilder::new_vec().question();
    let tricky = Name::from_octets(b"\x0bevil.listed\x03com\0".to_vec()).unwrap();
    builder.push((tricky, Rtype::A, Class::IN)).unwrap();
    let packet = builder.finish();
    let rules = |rule: &str| {
        Policies::from(EgressPolicy { allow_domains: vec![rule.into()], ..EgressPolicy::deny_all() })
    };
    assert!(matches!(read(&packet, &rules("*.listed.com")), Err(Rejection::Respond(_))));
    assert!(read(&packet, &Policies::from(EgressPolicy::default())).is_ok());
    let packet = query("a.LISTED.com", Rtype::A);
    assert!(read(&packet, &rules("*.listed.com")).is_ok());
    assert!(read(&packet, &rules("listed.com")).is_err());
}

#[test]
fn hosts_with_rules_have_no_records_that_hide_names() {
    let json = r#"{"api.example.com": [{"transform": {"headers": {"X-Key": "1"}}}]}"#;
    let rules: egress_rules::NetworkRules = serde_json::from_str(json).unwrap();
    let own = crate::policy::SandboxRules { team: 1, rules: rules.check().unwrap() };
    let policies = Policies::from(EgressPolicy { rules: Some(own.into()), ..EgressPolicy::default() });
    for rtype in [Rtype::HTTPS, Rtype::SVCB] {
        let Err(Rejection::Respond(response)) = read(&query("API.example.com", rtype), &policies) else {
            panic!("{rtype} is asked");
        };
        let response = Message::from_slice(&response).unwrap();
        assert_eq!((response.header().rcode(), response.header_counts().ancount()), (Rcode::NOERROR, 0));
        assert!(read(&query("other.example.com", rtype), &policies).is_ok());
        assert!(read(&query("api.example.com", rtype), &Policies::from(EgressPolicy::default())).is_ok());
    }
    assert!(read(&query("api.example.com", Rtype::A), &policies).is_ok());
}

#[test]
fn reads_the_hosts_resolvers() {
    let resolvers =
        Resolvers::parse("# x\nnameserver 192.0.2.1\nsearch a\nnameserver 2001:db8::1\nnameserver x\n");
    assert_eq!(resolvers.0, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
}

/// Either any bytes, or a message with some bytes changed.
fn almost(message: Wire) -> impl Strategy<Value = Wire> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let changed = (changes, any::<prop::sample::Index>()).prop_map(move |(changes, end)| {
        let mut packet = message.clone();
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        packet.truncate(packet.len().min(12 + end.index(packet.len() * 2)));
        packet
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), changed]
}

proptest! {
    #[test]
    fn any_message_of_a_sandbox_becomes_one_question(packet in almost(query("a.b.example", Rtype::A))) {
        match Query::parse(&packet) {
            Ok(query) => {
                let sent = query.question.query(7);
                let message = Message::from_slice(&sent).unwrap();
                let counts = message.header_counts();
                prop_assert_eq!((counts.qdcount(), counts.ancount(), counts.nscount(), counts.arcount()), (1, 0, 0, 1));
                prop_assert!(message.opt().is_some_and(|opt| opt.opt().is_empty()));
                prop_assert!(sent.len() <= 12 + 255 + 4 + 11);
                prop_assert!(query.error(Rcode::SERVFAIL).len() <= 512);
            }
            Err(Rejection::Respond(response)) => prop_assert!(response.len() <= 512),
            Err(Rejection::Ignore) => {}
        }
    }

    #[test]
    fn any_message_of_a_resolver_gives_an_answer_to_the_question(packet in almost(answer(&query("a.example", Rtype::A)))) {
        let asked = query("a.example", Rtype::A);
        let query = Query::parse(&asked).unwrap();
        let Ok(message) = Message::from_slice(&packet) else { return Ok(()) };
        let _ = message::lifetime(message, &query.question);
        let _ = message::addresses(message, &query.question);
        if let Ok(response) = query.respond(message, 5, 512) {
            prop_assert!(response.len() <= 512);
            let response = Message::from_slice(&response).unwrap();
            prop_assert_eq!(response.header().id(), 0x1234);
            prop_assert_eq!(response.sole_question().unwrap().qname().to_string(), "a.example");
            prop_assert_eq!(response.header_counts().arcount(), 0);
        }
    }
}
