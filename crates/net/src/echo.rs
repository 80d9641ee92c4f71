//! ICMP echo sockets in a container's namespace, with which `ping` works without capabilities.
//! In that namespace every address is local, so the kernel itself would answer an echo request to any address as if it were
//! reachable. Requests to addresses other than the sandbox's own are therefore dropped as they are sent: with `EPERM` for IPv4, without an
//! error for IPv6, where the kernel does not pass it on.

use std::fs;
use std::io;
use std::net::Ipv6Addr;

use rustix::net::netlink;
use sys::netlink::{Batch, REQUEST_ACK};
use sys::{Namespace, in_network_namespace};

use crate::loopback::{OWN_V4, OWN_V6};
use crate::redirect::{
    BATCH, BATCH_BEGIN, BATCH_END, BEFORE_ALL, DELETE_RULE, DROP, Hook, INET, IPV4, IPV6, META_L4PROTO,
    META_NFPROTO, NETWORK_HEADER, REQUEST, RETURN, TABLE, TRANSPORT_HEADER, chain, meta_is, payload_is, rule,
    verdict,
};

const CHAIN: &str = "echo";
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Echo and extended echo requests (RFC 8335), the only messages that an echo socket can send.
const REQUESTS: [u8; 2] = [8, 42];
const REQUESTS_V6: [u8; 2] = [128, 160];

/// Allows echo sockets to everybody in a namespace that [`configure`](crate::configure) has configured, with rules that drop
/// requests to addresses that are not the sandbox's own. May be called again.
///
/// The kernel keeps the echo sockets of all namespaces in one table, which it searches under one lock, so whoever can make many of
/// them stops `ping` for the whole host: limit their number first.
///
/// # Errors
/// The kernel refused.
pub fn allow_echo(namespace: &Namespace) -> io::Result<()> {
    in_network_namespace(namespace, || {
        let mut batch = Batch::default();
        batch.begin(BATCH_BEGIN, REQUEST, &BATCH).finish();
        chain(&mut batch, CHAIN, "filter", Hook::LocalOut, BEFORE_ALL);
        // Rules of an earlier call.
        batch.begin(DELETE_RULE, REQUEST_ACK, &INET).text(1, TABLE).text(2, CHAIN).finish();
        let loopback = Ipv6Addr::LOCALHOST.octets();
        own(&mut batch, IPV4, 16, &[127]);
        own(&mut batch, IPV4, 16, &OWN_V4.octets());
        own(&mut batch, IPV6, 24, &loopback);
        own(&mut batch, IPV6, 24, &OWN_V6.octets());
        for (protocol, kinds) in [(ICMP, REQUESTS), (ICMPV6, REQUESTS_V6)] {
            for kind in kinds {
                rule(&mut batch, CHAIN, |rule| {
                    meta_is(rule, META_L4PROTO, protocol);
                    payload_is(rule, TRANSPORT_HEADER, 0, &[kind]);
                    verdict(rule, DROP);
                });
            }
        }
        batch.begin(BATCH_END, REQUEST, &BATCH).finish();
        batch.exchange(Some(netlink::NETFILTER))?;
        // Ids of the host: all of them, as only the sandbox's processes are in the namespace. Last, so that no request is sent
        // before the rules are there.
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
    })
}

/// Lets packets to an address, or to a network of whole bytes, pass this chain.
fn own(batch: &mut Batch, family: u8, offset: u32, address: &[u8]) {
    rule(batch, CHAIN, |rule| {
        meta_is(rule, META_NFPROTO, family);
        payload_is(rule, NETWORK_HEADER, offset, address);
        verdict(rule, RETURN);
    });
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

    use super::*;
    use crate::configure;

    fn echo_socket(to: IpAddr) -> io::Result<OwnedFd> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        Ok(rustix::net::socket(family, SocketType::DGRAM, Some(protocol))?)
    }

    /// Sends an echo request and returns whether it was answered within the time.
    fn ping(namespace: &Namespace, to: &str, within: Duration) -> io::Result<bool> {
        let to: IpAddr = to.parse().unwrap();
        let socket = in_network_namespace(namespace, || echo_socket(to))?;
        let request = [if to.is_ipv4() { REQUESTS[0] } else { REQUESTS_V6[0] }, 0, 0, 0, 0, 0, 0, 1];
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(within))?;
        let mut answer = [0; 64];
        Ok(rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?.0 == request.len())
    }

    #[test]
    fn only_a_sandboxs_own_addresses_answer_echoes() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        let long = Duration::from_secs(20);
        assert!(ping(&namespace, "127.0.0.1", long).is_err(), "allowed before it is limited");
        for _ in 0..2 {
            allow_echo(&namespace).unwrap();
            for own in ["127.0.0.1", "127.9.9.9", "169.254.0.21", "::1", "fd00:cf::2"] {
                assert!(ping(&namespace, own, long).unwrap(), "{own}");
            }
            for other in ["8.8.8.8", "169.254.0.22", "10.0.0.1"] {
                let error = ping(&namespace, other, long).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{other}: {error}");
            }
            for other in ["2001:db8::1", "fd00:cf::1"] {
                let error = ping(&namespace, other, Duration::from_millis(100)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{other}: {error}");
            }
        }
    }

    #[test]
    fn closed_ports_still_refuse_datagrams() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        allow_echo(&namespace).unwrap();
        in_network_namespace(&namespace, || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            socket.connect(("192.0.2.1", 1000))?;
            socket.send(b"x")?;
            assert_eq!(socket.recv(&mut [0; 4]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            Ok(())
        })
        .unwrap();
    }
}
