//! Configures `lo` of a container's network namespace, with two routes that make every address
//! local.
//!
//! A packet to any address is then delivered inside the namespace, where a redirect rule or nothing
//! accepts it. Must be called on a thread that is inside the namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::tap::address;
use sys::netlink::{Batch, CREATE, REQUEST_ACK};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
/// Addresses of every sandbox, the same as of a VM's guest: connections to other addresses come from these.
pub(crate) const OWN_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
pub(crate) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 2);

/// Brings `lo` up, gives it the sandbox's own addresses, and adds `local 0.0.0.0/0` and `local ::/0`. A program that asks for the address that
/// it would connect from is told its own: otherwise it would be the destination's.
pub(crate) fn bring_up() -> io::Result<()> {
    let mut batch = Batch::default();
    // struct ifinfomsg: family, pad, type, index, flags, change
    let mut link = vec![0u8; 4];
    link.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    batch.begin(RTM_NEWLINK, REQUEST_ACK, &link).finish();
    let own: [(u8, &[u8]); 2] = [(AF_INET, &OWN_V4.octets()), (AF_INET6, &OWN_V6.octets())];
    for (family, octets) in own {
        let whole = u8::try_from(octets.len() * 8).expect("32 or 128 bits");
        address(&mut batch, LOOPBACK_INDEX, family, whole, octets);
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
        let route = [family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
        batch
            .begin(RTM_NEWROUTE, REQUEST_ACK | CREATE, &route)
            .attribute(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes())
            .attribute(RTA_PREFSRC, octets)
            .finish();
    }
    // NETLINK_ROUTE is protocol 0, the default.
    batch.exchange(None)
}
