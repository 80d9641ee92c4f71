//! Addresses of the link between a guest and its host. They are the same for every guest, as each link is in a network
//! namespace of its own; so a captured guest fits everywhere.
//! Neither side asks for the other's hardware address: neighbours are set.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The guest's interface.
pub const GUEST_INTERFACE: &str = "eth0";
/// Its hardware address.
pub const GUEST_MAC: [u8; 6] = [0x02, 0xcf, 0, 0, 0, 0x01];
/// The hardware address of the host's tap.
pub const HOST_MAC: [u8; 6] = [0x02, 0xcf, 0, 0, 0, 0x02];
/// The guest's address.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The host's end and the guest's way out.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Bits of the link's network.
pub const PREFIX_V4: u8 = 30;
/// The guest's address.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 2);
/// The host's end and the guest's way out.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 1);
/// Bits of the link's network: the larger it is, the more senders a guest could invent, each of them a neighbour to the kernel.
pub const PREFIX_V6: u8 = 126;
