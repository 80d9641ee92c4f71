//! The nf_tables rules in a sandbox's namespace: loopback traffic is left alone, DNS and all other
//! TCP is redirected to our listeners.
//!
//! Other packets have no destination: there is no interface but `lo` or the tap. Attribute numbers
//! come from `linux/netfilter/nf_tables.h`; numbers are sent in network byte order.

use std::fs;
use std::io;

use rustix::net::netlink;

use crate::dial::{CONTROL_ADDRESS, CONTROL_MARK};
use crate::{DNS_PORT, EGRESS_PORT};
use sys::netlink::{APPEND, Batch, CREATE, REQUEST_ACK};

pub(crate) const TABLE: &str = "cofferdam";
const CHAIN: &str = "egress";
const DISCOVERY: &str = "discovery";
const CONTROL: &str = "control";
const TRACKING: &str = "tracking";
const REFUSAL: &str = "refusal";
/// Settings of connection tracking in the namespace: entries live in kernel memory that counts for nobody, so those of past connections are forgotten
/// soon, and packets in the middle of an unknown connection create none.
const TRACKING_SETTINGS: [(&str, u32); 5] = [
    ("udp_timeout", 5),
    ("udp_timeout_stream", 10),
    ("tcp_timeout_time_wait", 5),
    ("tcp_timeout_close", 2),
    ("tcp_loose", 0),
];

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(crate) const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
pub(crate) const DELETE_RULE: u16 = SUBSYSTEM | 8;
pub(crate) const BATCH_BEGIN: u16 = 16;
pub(crate) const BATCH_END: u16 = 17;
pub(crate) const REQUEST: u16 = 1;
/// `struct nfgenmsg` for the `inet` family, which sees IPv4 and IPv6.
pub(crate) const INET: [u8; 4] = [1, 0, 0, 0];
/// `struct nfgenmsg` of a batch: its last field names the subsystem.
pub(crate) const BATCH: [u8; 4] = [0, 0, 0, 10];

pub(crate) const META_MARK: u32 = 3;
pub(crate) const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;
pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;
pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
pub(crate) const NETWORK_HEADER: u32 = 1;
pub(crate) const TRANSPORT_HEADER: u32 = 2;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
pub(crate) const RETURN: i32 = -5;
pub(crate) const DROP: i32 = 0;
const EQUAL: u32 = 0;
pub(crate) const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
/// Priorities of chains: lower ones run first.
const DESTINATION_NAT: i32 = -100;
const AFTER_NAT: i32 = 0;
pub(crate) const BEFORE_ALL: i32 = -300;

/// The hook that sees the packets of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets from processes in the namespace: containers.
    LocalOut = 3,
    /// Packets that arrive through the tap: VMs.
    PreRouting = 0,
}

/// Installs the rules in the calling thread's network namespace.
///
/// # Errors
/// The kernel has no nf_tables NAT.
pub(crate) fn install(hook: Hook) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.begin(BATCH_BEGIN, REQUEST, &BATCH).finish();
    batch.begin(NEW_TABLE, REQUEST_ACK | CREATE, &INET).text(1, TABLE).be32(2, 0).finish();
    track_only_redirected(&mut batch, hook);
    chain(&mut batch, CHAIN, "nat", hook, DESTINATION_NAT);
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_NFPROTO, IPV4);
        payload_is(rule, NETWORK_HEADER, 16, &[127]);
        verdict(rule, RETURN);
    });
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_NFPROTO, IPV6);
        payload_is(rule, NETWORK_HEADER, 24, &std::net::Ipv6Addr::LOCALHOST.octets());
        verdict(rule, RETURN);
    });
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_L4PROTO, UDP);
        payload_is(rule, TRANSPORT_HEADER, 2, &53u16.to_be_bytes());
        redirect(rule, DNS_PORT);
    });
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_L4PROTO, TCP);
        redirect(rule, EGRESS_PORT);
    });
    match hook {
        Hook::LocalOut => guard_control_address(&mut batch),
        Hook::PreRouting => {
            drop_neighbour_discovery(&mut batch);
            refuse_datagrams(&mut batch);
        }
    }
    batch.begin(BATCH_END, REQUEST, &BATCH).finish();
    batch.exchange(Some(netlink::NETFILTER))?;
    for (name, value) in TRACKING_SETTINGS {
        fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), value.to_string())?;
    }
    Ok(())
}

/// Exempts from connection tracking whatever is not redirected: traffic between programs of a sandbox, and datagrams to other ports than that of DNS,
/// each of which would become an entry.
fn track_only_redirected(batch: &mut Batch, hook: Hook) {
    const SOURCE_PORT: u32 = 0;
    const DESTINATION_PORT: u32 = 2;
    const IPV4_DESTINATION: u32 = 16;
    const IPV6_DESTINATION: u32 = 24;
    chain(batch, TRACKING, "filter", hook, BEFORE_ALL);
    // What is redirected, and the replies of our listeners to it.
    for (protocol, offset, port) in
        [(UDP, DESTINATION_PORT, 53), (UDP, SOURCE_PORT, DNS_PORT), (TCP, SOURCE_PORT, EGRESS_PORT)]
    {
        rule(batch, TRACKING, |rule| {
            meta_is(rule, META_L4PROTO, protocol);
            payload_is(rule, TRANSPORT_HEADER, offset, &port.to_be_bytes());
            verdict(rule, RETURN);
        });
    }
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    let untracked: [(u8, u32, &[u8]); 3] = [
        (IPV4, IPV4_DESTINATION, &[127]),
        (IPV4, IPV4_DESTINATION, &CONTROL_ADDRESS.octets()),
        (IPV6, IPV6_DESTINATION, &loopback),
    ];
    for (family, offset, address) in untracked {
        rule(batch, TRACKING, |rule| {
            meta_is(rule, META_NFPROTO, family);
            payload_is(rule, NETWORK_HEADER, offset, address);
            expression(rule, "notrack", |_| {});
        });
    }
    rule(batch, TRACKING, |rule| {
        meta_is(rule, META_L4PROTO, TCP);
        verdict(rule, RETURN);
    });
    rule(batch, TRACKING, |rule| expression(rule, "notrack", |_| {}));
}

/// Drops IPv6 neighbour and router discovery from a guest. Both ends know each other's hardware
/// address. And each sender of a solicitation would become an entry in the neighbour table, which
/// the kernel shares among all namespaces: if a guest filled it, there would be no room for the
/// host's own neighbours.
fn drop_neighbour_discovery(batch: &mut Batch) {
    const ICMPV6: u8 = 58;
    /// Range of ICMPv6 types: solicitations and advertisements of routers and neighbours, and
    /// redirects.
    const TYPES: [u8; 2] = [133, 137];
    chain(batch, DISCOVERY, "filter", Hook::PreRouting, BEFORE_ALL);
    rule(batch, DISCOVERY, |rule| {
        meta_is(rule, META_L4PROTO, ICMPV6);
        payload(rule, TRANSPORT_HEADER, 0, 1);
        register(rule, AT_LEAST, &TYPES[..1]);
        register(rule, AT_MOST, &TYPES[1..]);
        verdict(rule, DROP);
    });
}

/// Answers a guest's datagrams to other ports than that of DNS at once: "port unreachable". So a program that tries UDP first, as for QUIC,
/// goes on without waiting. In a container the kernel does so by itself, because every address is its own.
fn refuse_datagrams(batch: &mut Batch) {
    const DESTINATION_PORT: u32 = 2;
    /// `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_PORT_UNREACH`, which stand for both versions of IP.
    const ICMPX_UNREACHABLE: u32 = 2;
    const PORT_UNREACHABLE: u8 = 1;
    chain(batch, REFUSAL, "filter", Hook::PreRouting, AFTER_NAT);
    rule(batch, REFUSAL, |rule| {
        meta_is(rule, META_L4PROTO, UDP);
        payload(rule, TRANSPORT_HEADER, DESTINATION_PORT, 2);
        register(rule, NOT_EQUAL, &DNS_PORT.to_be_bytes());
        expression(rule, "reject", |data| {
            data.be32(1, ICMPX_UNREACHABLE).attribute(2, &[PORT_UNREACHABLE]);
        });
    });
}

/// Drops packets that open a TCP connection from the address that envd trusts, unless they carry the mark of the server's own
/// sockets. Others pass, for CRIU: it ends a restored connection by a packet in the name of its other end.
fn guard_control_address(batch: &mut Batch) {
    const IPV4_SOURCE: u32 = 12;
    const TCP_FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    chain(batch, CONTROL, "filter", Hook::LocalOut, BEFORE_ALL);
    rule(batch, CONTROL, |rule| {
        meta_is(rule, META_NFPROTO, IPV4);
        payload_is(rule, NETWORK_HEADER, IPV4_SOURCE, &CONTROL_ADDRESS.octets());
        meta_is(rule, META_L4PROTO, TCP);
        payload(rule, TRANSPORT_HEADER, TCP_FLAGS, 1);
        mask(rule, SYN);
        register_is(rule, &[SYN]);
        meta(rule, META_MARK);
        register(rule, NOT_EQUAL, &CONTROL_MARK.to_ne_bytes());
        verdict(rule, DROP);
    });
}

/// Leaves only the bits of `value` in the register's first byte.
fn mask(rule: &mut Batch, value: u8) {
    expression(rule, "bitwise", |data| {
        data.be32(1, REGISTER).be32(2, REGISTER).be32(3, 1);
        for (attribute, operand) in [(4, value), (5, 0)] {
            data.nested(attribute, |bits| {
                bits.attribute(1, &[operand]);
            });
        }
    });
}

pub(crate) fn chain(batch: &mut Batch, name: &str, kind: &str, hook: Hook, priority: i32) {
    batch
        .begin(NEW_CHAIN, REQUEST_ACK | CREATE, &INET)
        .text(1, TABLE)
        .text(3, name)
        .nested(4, |place| {
            place.be32(1, hook as u32).attribute(2, &priority.to_be_bytes());
        })
        .be32(5, 1)
        .text(7, kind)
        .finish();
}

pub(crate) fn rule(batch: &mut Batch, chain: &str, expressions: impl FnOnce(&mut Batch)) {
    batch
        .begin(NEW_RULE, REQUEST_ACK | CREATE | APPEND, &INET)
        .text(1, TABLE)
        .text(2, chain)
        .nested(4, expressions)
        .finish();
}

fn expression(rule: &mut Batch, name: &str, data: impl FnOnce(&mut Batch)) {
    rule.nested(1, |element| {
        element.text(1, name).nested(2, data);
    });
}

pub(crate) fn meta_is(rule: &mut Batch, key: u32, value: u8) {
    meta(rule, key);
    register_is(rule, &[value]);
}

pub(crate) fn meta(rule: &mut Batch, key: u32) {
    expression(rule, "meta", |data| {
        data.be32(1, REGISTER).be32(2, key);
    });
}

pub(crate) fn payload_is(rule: &mut Batch, header: u32, offset: u32, value: &[u8]) {
    payload(rule, header, offset, u32::try_from(value.len()).expect("an address at most"));
    register_is(rule, value);
}

fn payload(rule: &mut Batch, header: u32, offset: u32, length: u32) {
    expression(rule, "payload", |data| {
        data.be32(1, REGISTER).be32(2, header).be32(3, offset).be32(4, length);
    });
}

fn register_is(rule: &mut Batch, value: &[u8]) {
    register(rule, EQUAL, value);
}

pub(crate) fn register(rule: &mut Batch, comparison: u32, value: &[u8]) {
    expression(rule, "cmp", |data| {
        data.be32(1, REGISTER).be32(2, comparison).nested(3, |wanted| {
            wanted.attribute(1, value);
        });
    });
}

pub(crate) fn verdict(rule: &mut Batch, code: i32) {
    expression(rule, "immediate", |data| {
        data.be32(1, VERDICT_REGISTER).nested(2, |value| {
            value.nested(2, |verdict| {
                verdict.attribute(1, &code.to_be_bytes());
            });
        });
    });
}

fn redirect(rule: &mut Batch, port: u16) {
    expression(rule, "immediate", |data| {
        data.be32(1, REGISTER).nested(2, |value| {
            value.attribute(1, &port.to_be_bytes());
        });
    });
    expression(rule, "redir", |data| {
        data.be32(1, REGISTER);
    });
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use sys::{Namespace, in_network_namespace};

    use super::*;
    use crate::{Listeners, configure};

    fn entries() -> io::Result<u32> {
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
        Ok(count.trim().parse().unwrap())
    }

    #[test]
    fn only_redirected_traffic_is_tracked() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        let listeners = Listeners::open(&namespace).unwrap();
        let [untracked, tracked] = in_network_namespace(&namespace, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // To closed ports: the errors that come back are of no interest.
            for port in 1000..1200 {
                let _ = socket.send_to(b"x", ("192.0.2.1", port));
                let _ = socket.send_to(b"x", ("127.0.0.1", port));
            }
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let mut client = TcpStream::connect(server.local_addr()?)?;
            let (mut accepted, _) = server.accept()?;
            client.write_all(b"ping")?;
            accepted.read_exact(&mut [0; 4])?;
            let untracked = entries()?;
            let asking = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            asking.send_to(b"question", ("192.0.2.53", 53))?;
            let _connection = TcpStream::connect(("192.0.2.1", 443))?;
            Ok([untracked, entries()?])
        })
        .unwrap();
        assert_eq!((untracked, tracked), (0, 2));
        let mut question = [0; 16];
        let (length, from) = listeners.dns[0].recv_from(&mut question).unwrap();
        assert_eq!(&question[..length], b"question");
        // The answer comes from the address that was asked.
        listeners.dns[0].send_to(b"answer", from).unwrap();
        assert_eq!(in_network_namespace(&namespace, entries).unwrap(), 2);
    }

    #[test]
    fn programs_are_told_an_address_of_their_own() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        let told = |to: &'static str, from: &'static str| {
            in_network_namespace(&namespace, || {
                let socket = UdpSocket::bind((from, 0))?;
                socket.connect((to, 80))?;
                Ok(socket.local_addr()?.ip().to_string())
            })
            .unwrap()
        };
        assert_eq!(told("8.8.8.8", "0.0.0.0"), "169.254.0.21");
        assert_eq!(told("2001:db8::1", "::"), "fd00:cf::2");
        assert_eq!(told("127.0.0.1", "0.0.0.0"), "127.0.0.1");
    }

    #[test]
    fn a_connection_from_another_local_address_to_loopback_works() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        in_network_namespace(&namespace, || {
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &std::net::SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 0))?;
            rustix::net::connect(&socket, &server.local_addr()?)?;
            let (mut accepted, _) = server.accept()?;
            let mut client = TcpStream::from(socket);
            for _ in 0..3 {
                accepted.write_all(b"pong")?;
                client.read_exact(&mut [0; 4])?;
                client.write_all(b"ping")?;
                accepted.read_exact(&mut [0; 4])?;
            }
            Ok(())
        })
        .unwrap();
    }
}
