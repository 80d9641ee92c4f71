//! Addresses of the link between a guest and its host. They are the same for all guests, as each
//! link is in a network namespace of its own; so a snapshot can be restored in any namespace.
//!
//! Neither side resolves the other's hardware address: neighbour entries are permanent.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Name of the guest's network interface.
pub const GUEST_INTERFACE: &str = "eth0";
/// Hardware address of the guest.
pub const GUEST_MAC: [u8; 6] = [0x02, 0xcf, 0, 0, 0, 0x01];
/// Hardware address of the host's tap.
pub const HOST_MAC: [u8; 6] = [0x02, 0xcf, 0, 0, 0, 0x02];
/// IPv4 address of the guest.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// IPv4 address of the host's end, which is the guest's gateway.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Prefix length of the link's IPv4 network.
pub const PREFIX_V4: u8 = 30;
/// IPv6 address of the guest.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 2);
/// IPv6 address of the host's end, which is the guest's gateway.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 1);
/// Prefix length of the link's IPv6 network. A larger network would let a guest invent more
/// senders, each of which the kernel could add to its neighbour table.
pub const PREFIX_V6: u8 = 126;
