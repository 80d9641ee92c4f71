//! Configures the guest's network: `lo`, and one interface with the addresses that every guest has.
//!
//! The host connects to services on `127.0.0.1` with that very destination address, so it is routed
//! from outside too. Nothing is resolved or announced: no duplicate address detection, no router
//! advertisements, permanent neighbour entries.

use std::fs;
use std::io;

use guest_api::network::{
    GUEST_INTERFACE, GUEST_V4, GUEST_V6, HOST_MAC, HOST_V4, HOST_V6, PREFIX_V4, PREFIX_V6,
};
use sys::netlink::{Batch, CREATE, REQUEST_ACK};

use crate::error::InitError;
use crate::uevents::UeventSocket;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const NUD_PERMANENT: u16 = 0x80;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Settings under `/proc/sys/net`, in the order in which they are written.
const SETTINGS: [(&str, &str); 6] = [
    // Every user may `ping`.
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv4/conf/eth0/route_localnet", "1"),
    ("ipv6/conf/eth0/accept_ra", "0"),
    ("ipv6/conf/eth0/accept_dad", "0"),
    ("ipv6/conf/eth0/autoconf", "0"),
];

/// Waits for the interface and configures the network.
///
/// # Errors
/// There is no interface, or the kernel refuses a setting.
pub(crate) fn set_up(events: &UeventSocket) -> Result<(), InitError> {
    let index = events.wait_for("there is no network interface", interface)?;
    let set = |(name, value): &(&str, &str)| fs::write(format!("/proc/sys/net/{name}"), value);
    SETTINGS.iter().try_for_each(set).map_err(InitError::kernel("set network options"))?;
    configure(index).map_err(InitError::kernel("configure the network"))
}

fn interface() -> Option<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{GUEST_INTERFACE}/ifindex")).ok()?;
    text.trim().parse().ok()
}

fn configure(index: u32) -> io::Result<()> {
    let mut batch = Batch::default();
    for link in [LOOPBACK, index] {
        // struct ifinfomsg: family, pad, type, index, flags, change
        let message =
            [&[0; 4][..], &link.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat();
        batch.begin(RTM_NEWLINK, REQUEST_ACK, &message).finish();
    }
    let (guest4, host4) = (GUEST_V4.octets(), HOST_V4.octets());
    let (guest6, host6) = (GUEST_V6.octets(), HOST_V6.octets());
    let families =
        [(AF_INET, PREFIX_V4, &guest4[..], &host4[..]), (AF_INET6, PREFIX_V6, &guest6[..], &host6[..])];
    for (family, prefix, guest, host) in families {
        // struct ifaddrmsg: family, prefix length, flags, scope, index
        let message = [&[family, prefix, IFA_F_NODAD, 0][..], &index.to_ne_bytes()].concat();
        batch
            .begin(RTM_NEWADDR, REQUEST_ACK | CREATE, &message)
            .attribute(IFA_LOCAL, guest)
            .attribute(IFA_ADDRESS, guest)
            .finish();
        // struct ndmsg: family, pads, index, state, flags, type
        let state = NUD_PERMANENT.to_ne_bytes();
        let message = [&[family, 0, 0, 0][..], &index.to_ne_bytes(), &state, &[0, RTN_UNICAST]].concat();
        batch
            .begin(RTM_NEWNEIGH, REQUEST_ACK | CREATE, &message)
            .attribute(NDA_DST, host)
            .attribute(NDA_LLADDR, &HOST_MAC)
            .finish();
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
        let message = [family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        batch
            .begin(RTM_NEWROUTE, REQUEST_ACK | CREATE, &message)
            .attribute(RTA_GATEWAY, host)
            .attribute(RTA_OIF, &index.to_ne_bytes())
            .finish();
    }
    // NETLINK_ROUTE is protocol 0, the default.
    batch.exchange(None)
}
