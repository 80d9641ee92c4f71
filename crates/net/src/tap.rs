//! The network namespace of a VM: a tap, with our listeners at the host's end of the link.
//!
//! All VMs have the same addresses, as each link is in a namespace of its own. Packets from the
//! guest are redirected to our listeners or dropped. The guest's loopback can be reached through
//! the link: the host's end routes 127.0.0.0/8 to the guest, which accepts that.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use sys::{Namespace, in_network_namespace, make_tap};

use crate::redirect;
use sys::netlink::{Batch, CREATE, REQUEST_ACK};

/// Name of the host's end of the link, in the namespace.
const TAP: &str = "tap0";

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Addresses at both ends of the link between a guest and its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddresses {
    /// Hardware address of the guest.
    pub guest_mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// IPv4 address of the guest.
    pub guest_ipv4: Ipv4Addr,
    /// IPv4 address of the host's end, which is the guest's gateway.
    pub host_ipv4: Ipv4Addr,
    /// Prefix length of the IPv4 network.
    pub prefix_ipv4: u8,
    /// IPv6 address of the guest.
    pub guest_ipv6: Ipv6Addr,
    /// IPv6 address of the host's end, which is the guest's gateway.
    pub host_ipv6: Ipv6Addr,
    /// Prefix length of the IPv6 network.
    pub prefix_ipv6: u8,
}

/// A network namespace with a tap in it.
#[derive(Debug)]
pub struct TapNetwork {
    /// The namespace; it exists as long as a handle, process or socket in it.
    pub namespace: Namespace,
    /// The guest's end of the link, for QEMU to inherit.
    pub tap: OwnedFd,
}

/// Creates a network namespace with a configured tap and redirect rules. Takes about a millisecond.
///
/// # Errors
/// The kernel has no TUN or no nf_tables NAT.
pub fn create_tap_network(addresses: &LinkAddresses) -> io::Result<TapNetwork> {
    let namespace = Namespace::new_network()?;
    let tap = in_network_namespace(&namespace, || {
        let tap = make_tap(TAP)?;
        set_options()?;
        configure(addresses)?;
        redirect::install(redirect::Hook::PreRouting)?;
        Ok(tap)
    })?;
    Ok(TapNetwork { namespace, tap })
}

/// Sets the options of the network stack. `/proc/sys/net` shows those of the calling thread's
/// namespace. Defaults that the host sets for new interfaces must not apply here.
fn set_options() -> io::Result<()> {
    let settings = [
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/tap0/rp_filter", "0"),
        // Answers from the guest's loopback have the source 127.0.0.1.
        ("ipv4/conf/tap0/route_localnet", "1"),
        // The guest's hardware address is set, so ARP is not needed. And each sender of an ARP
        // request would get an entry in the neighbour table, which all namespaces share.
        ("ipv4/conf/tap0/arp_ignore", "8"),
        ("ipv6/conf/all/forwarding", "0"),
        ("ipv6/conf/tap0/accept_ra", "0"),
        // No automatic link-local address.
        ("ipv6/conf/tap0/addr_gen_mode", "1"),
    ];
    for (name, value) in settings {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            // The kernel has no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6") => {}
            answer => answer?,
        }
    }
    Ok(())
}

fn configure(addresses: &LinkAddresses) -> io::Result<()> {
    let index = rustix::net::netdevice::name_to_index(&socket()?, TAP)?;
    let mut batch = Batch::default();
    // struct ifinfomsg: family, pad, type, index, flags, change
    let mut link = vec![0u8; 4];
    link.extend_from_slice(&index.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    link.extend_from_slice(&IFF_UP.to_ne_bytes());
    batch.begin(RTM_NEWLINK, REQUEST_ACK, &link).attribute(IFLA_ADDRESS, &addresses.host_mac).finish();
    address(&mut batch, index, AF_INET, addresses.prefix_ipv4, &addresses.host_ipv4.octets());
    address(&mut batch, index, AF_INET6, addresses.prefix_ipv6, &addresses.host_ipv6.octets());
    neighbour(&mut batch, index, AF_INET, &addresses.guest_ipv4.octets(), addresses.guest_mac);
    neighbour(&mut batch, index, AF_INET6, &addresses.guest_ipv6.octets(), addresses.guest_mac);
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    let route = [AF_INET, 8, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    batch
        .begin(RTM_NEWROUTE, REQUEST_ACK | CREATE, &route)
        .attribute(RTA_DST, &[127, 0, 0, 0])
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .attribute(RTA_GATEWAY, &addresses.guest_ipv4.octets())
        .attribute(RTA_PREFSRC, &addresses.host_ipv4.octets())
        .finish();
    // NETLINK_ROUTE is protocol 0, the default.
    batch.exchange(None)
}

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;

pub(crate) fn address(batch: &mut Batch, index: u32, family: u8, prefix: u8, octets: &[u8]) {
    const LOCAL: u16 = 2;
    const ADDRESS: u16 = 1;
    /// `IFA_F_NODAD`: no other host is on the link, so no duplicate address detection.
    const UNIQUE: u8 = 2;
    // struct ifaddrmsg: family, prefixlen, flags, scope, index
    let mut header = vec![family, prefix, if family == AF_INET6 { UNIQUE } else { 0 }, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    batch
        .begin(RTM_NEWADDR, REQUEST_ACK | CREATE, &header)
        .attribute(LOCAL, octets)
        .attribute(ADDRESS, octets)
        .finish();
}

fn neighbour(batch: &mut Batch, index: u32, family: u8, octets: &[u8], mac: [u8; 6]) {
    const DESTINATION: u16 = 1;
    const HARDWARE: u16 = 2;
    const PERMANENT: u16 = 0x80;
    // struct ndmsg: family, pad, pad, index, state, flags, type
    let mut header = vec![family, 0, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[0, RTN_UNICAST]);
    batch
        .begin(RTM_NEWNEIGH, REQUEST_ACK | CREATE, &header)
        .attribute(DESTINATION, octets)
        .attribute(HARDWARE, &mac)
        .finish();
}

fn socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const ADDRESSES: LinkAddresses = LinkAddresses {
        guest_mac: [2, 0xcf, 0, 0, 0, 1],
        host_mac: [2, 0xcf, 0, 0, 0, 2],
        guest_ipv4: Ipv4Addr::new(169, 254, 0, 21),
        host_ipv4: Ipv4Addr::new(169, 254, 0, 22),
        prefix_ipv4: 30,
        guest_ipv6: Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 2),
        host_ipv6: Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, 1),
        prefix_ipv6: 126,
    };

    #[test]
    fn loopback_addresses_are_routed_to_the_guest() {
        let network = create_tap_network(&ADDRESSES).unwrap();
        let show = |arguments: &[&str]| {
            let output =
                in_network_namespace(&network.namespace, || Command::new("ip").args(arguments).output());
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let route = show(&["route", "get", "127.0.0.1"]);
        assert!(route.contains("via 169.254.0.21 dev tap0 src 169.254.0.22"), "{route}");
        let addresses = show(&["-o", "addr"]);
        assert!(addresses.contains("169.254.0.22/30") && addresses.contains("fd00:cf::1/126"), "{addresses}");
        assert!(!addresses.contains("fe80") && !addresses.contains("127.0.0.1"), "{addresses}");
        crate::Listeners::open_for_tap(&network.namespace).unwrap();
    }

    /// A frame that a guest may send to create an entry in the neighbour table: a virtio header,
    /// then an Ethernet frame.
    fn frame(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
        const NO_OFFLOAD: [u8; 10] = [0; 10];
        let stranger = [2, 0xcf, 0, 0, 9, 9];
        [&NO_OFFLOAD[..], &ADDRESSES.host_mac, &stranger, &kind, rest].concat()
    }

    fn arp_request(from: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0xcf, 0, 0, 9, 9];
        frame([8, 6], &[&head[..], &from.octets(), &[0; 6], &ADDRESSES.host_ipv4.octets()].concat())
    }

    fn neighbour_solicitation(from: Ipv6Addr) -> Vec<u8> {
        let to = ADDRESSES.host_ipv6;
        let mut message =
            [&[135, 0, 0, 0, 0, 0, 0, 0][..], &to.octets(), &[1, 1, 2, 0xcf, 0, 0, 9, 9]].concat();
        let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        let words = pseudo.chunks(2).chain(message.chunks(2));
        let mut sum: u32 = words.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !u16::try_from(sum).unwrap();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let head = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &from.octets(), &to.octets()].concat();
        frame([0x86, 0xdd], &[head, message].concat())
    }

    /// A datagram from the guest: IPv4 and UDP, with the checksum that IPv4 demands and none of UDP's.
    fn datagram(port: u16) -> Vec<u8> {
        let mut head = [
            &[0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0][..],
            &ADDRESSES.guest_ipv4.octets(),
            &[192, 0, 2, 1],
        ]
        .concat();
        let sum: u32 = head.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        head[10..12].copy_from_slice(&checksum.to_be_bytes());
        let [high, low] = port.to_be_bytes();
        frame([8, 0], &[&head[..], &[0x80, 0, high, low, 0, 9, 0, 0, b'x']].concat())
    }

    #[test]
    fn datagrams_of_a_guest_are_refused_at_once_but_for_questions_to_name_servers() {
        let network = create_tap_network(&ADDRESSES).unwrap();
        let listeners = crate::Listeners::open_for_tap(&network.namespace).unwrap();
        rustix::io::write(&network.tap, &datagram(443)).unwrap();
        rustix::io::write(&network.tap, &datagram(53)).unwrap();
        let (length, from) = listeners.dns[0].recv_from(&mut [0; 16]).unwrap();
        assert_eq!((length, from.ip()), (1, ADDRESSES.guest_ipv4.into()));
        let mut refused = Vec::new();
        let mut answer = [0; 2048];
        rustix::io::ioctl_fionbio(&network.tap, true).unwrap();
        while let Ok(length) = rustix::io::read(&network.tap, &mut answer) {
            // After headers of virtio and Ethernet: an IPv4 packet whose payload is ICMP type 3, code 3.
            let packet = &answer[24..length];
            if packet[0] == 0x45 && packet[9] == 1 {
                let asked = u16::from_be_bytes([packet[50], packet[51]]);
                refused.push((packet[20], packet[21], packet[16..20].to_vec(), asked));
            }
        }
        assert_eq!(refused, [(3, 3, ADDRESSES.guest_ipv4.octets().to_vec(), 443)]);
    }

    #[test]
    fn a_guest_cannot_add_neighbours() {
        let network = create_tap_network(&ADDRESSES).unwrap();
        // The open tap, as in QEMU, is what makes the link a running one.
        let send = |frame: &[u8]| assert_eq!(rustix::io::write(&network.tap, frame).unwrap(), frame.len());
        for last in [20, 23] {
            send(&arp_request(Ipv4Addr::new(169, 254, 0, last)));
        }
        for last in 3..20 {
            send(&neighbour_solicitation(Ipv6Addr::new(0xfd00, 0xcf, 0, 0, 0, 0, 0, last)));
        }
        let known = in_network_namespace(&network.namespace, || Command::new("ip").arg("neigh").output());
        let known = String::from_utf8(known.unwrap().stdout).unwrap();
        assert!(
            known.lines().all(|line| line.contains("PERMANENT")) && known.lines().count() == 2,
            "{known}"
        );
    }
}
