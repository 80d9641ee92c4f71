//! The nf_tables rules in a sandbox's namespace: loopback traffic is left alone, DNS and all other
//! TCP is redirected to our listeners.
//!
//! Other packets have no destination: there is no interface but `lo` or the tap. Attribute numbers
//! come from `linux/netfilter/nf_tables.h`; numbers are sent in network byte order.

use std::io;

use rustix::net::netlink;

use crate::dial::{CONTROL_ADDRESS, CONTROL_MARK};
use crate::{DNS_PORT, EGRESS_PORT};
use sys::netlink::{APPEND, Batch, CREATE, REQUEST_ACK};

const TABLE: &str = "cofferdam";
const CHAIN: &str = "egress";
const DISCOVERY: &str = "discovery";
const CONTROL: &str = "control";

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const REQUEST: u16 = 1;
/// `struct nfgenmsg` for the `inet` family, which sees IPv4 and IPv6.
const INET: [u8; 4] = [1, 0, 0, 0];
/// `struct nfgenmsg` of a batch: its last field names the subsystem.
const BATCH: [u8; 4] = [0, 0, 0, 10];

const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const RETURN: i32 = -5;
const DROP: i32 = 0;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
/// Priorities of chains: lower ones run first.
const DESTINATION_NAT: i32 = -100;
const BEFORE_ALL: i32 = -300;

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
    chain(&mut batch, CHAIN, "nat", hook, DESTINATION_NAT);
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_NFPROTO, 2);
        payload_is(rule, NETWORK_HEADER, 16, &[127]);
        verdict(rule, RETURN);
    });
    rule(&mut batch, CHAIN, |rule| {
        meta_is(rule, META_NFPROTO, 10);
        payload_is(rule, NETWORK_HEADER, 24, &std::net::Ipv6Addr::LOCALHOST.octets());
        verdict(rule, RETURN);
    });
    rule(&mut batch, CHAIN, |rule| {
        const UDP: u8 = 17;
        meta_is(rule, META_L4PROTO, UDP);
        payload_is(rule, TRANSPORT_HEADER, 2, &53u16.to_be_bytes());
        redirect(rule, DNS_PORT);
    });
    rule(&mut batch, CHAIN, |rule| {
        const TCP: u8 = 6;
        meta_is(rule, META_L4PROTO, TCP);
        redirect(rule, EGRESS_PORT);
    });
    match hook {
        Hook::LocalOut => guard_control_address(&mut batch),
        Hook::PreRouting => drop_neighbour_discovery(&mut batch),
    }
    batch.begin(BATCH_END, REQUEST, &BATCH).finish();
    batch.exchange(Some(netlink::NETFILTER))
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

/// Drops packets that open a TCP connection from the address that envd trusts, unless they carry the mark of the server's own
/// sockets. Others pass, for CRIU: it ends a restored connection by a packet in the name of its other end.
fn guard_control_address(batch: &mut Batch) {
    const IPV4_SOURCE: u32 = 12;
    const TCP: u8 = 6;
    const TCP_FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    chain(batch, CONTROL, "filter", Hook::LocalOut, BEFORE_ALL);
    rule(batch, CONTROL, |rule| {
        meta_is(rule, META_NFPROTO, 2);
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

fn chain(batch: &mut Batch, name: &str, kind: &str, hook: Hook, priority: i32) {
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

fn rule(batch: &mut Batch, chain: &str, expressions: impl FnOnce(&mut Batch)) {
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

fn meta_is(rule: &mut Batch, key: u32, value: u8) {
    meta(rule, key);
    register_is(rule, &[value]);
}

fn meta(rule: &mut Batch, key: u32) {
    expression(rule, "meta", |data| {
        data.be32(1, REGISTER).be32(2, key);
    });
}

fn payload_is(rule: &mut Batch, header: u32, offset: u32, value: &[u8]) {
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

fn register(rule: &mut Batch, comparison: u32, value: &[u8]) {
    expression(rule, "cmp", |data| {
        data.be32(1, REGISTER).be32(2, comparison).nested(3, |wanted| {
            wanted.attribute(1, value);
        });
    });
}

fn verdict(rule: &mut Batch, code: i32) {
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
