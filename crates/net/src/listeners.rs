//! The sockets that the server opens inside a sandbox's namespace; outgoing traffic is redirected
//! to them.
//!
//! A thread enters the namespace, binds and leaves; the sockets are then used from outside like any
//! others. They are closed when the server ends, and a new server that adopts the sandbox opens
//! them again.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sys::{Namespace, in_network_namespace};

use crate::{DNS_PORT, EGRESS_PORT};

/// A listening TCP socket in a namespace, for a process there to inherit.
pub type TcpListener = std::net::TcpListener;

const BACKLOG: i32 = 1024;

/// The gateway's sockets in the namespace of one sandbox, for IPv4 and IPv6.
#[derive(Debug)]
pub struct Listeners {
    /// Accept redirected TCP connections.
    pub(crate) tcp: [std::net::TcpListener; 2],
    /// Receive redirected DNS datagrams.
    pub(crate) dns: [std::net::UdpSocket; 2],
}

impl Listeners {
    /// Opens the gateway's sockets in the configured namespace of a container.
    ///
    /// # Errors
    /// A port is taken (a process in the sandbox listens there), or `lo` is not up.
    pub fn open(namespace: &Namespace) -> io::Result<Self> {
        Self::open_at(namespace, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    }

    /// Opens the gateway's sockets in the namespace of a VM. They listen on all addresses, because
    /// redirected packets arrive at the tap's addresses.
    ///
    /// # Errors
    /// A port is taken.
    pub fn open_for_tap(namespace: &Namespace) -> io::Result<Self> {
        Self::open_at(namespace, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
    }

    fn open_at(namespace: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> io::Result<Self> {
        in_network_namespace(namespace, || {
            Ok(Self {
                tcp: [listen((v4, EGRESS_PORT).into())?, listen((v6, EGRESS_PORT).into())?],
                dns: [datagram((v4, DNS_PORT).into())?, datagram((v6, DNS_PORT).into())?],
            })
        })
    }
}

/// Opens a listening socket on all IPv4 addresses of a namespace.
///
/// # Errors
/// The port is taken.
pub fn listen_in(namespace: &Namespace, port: u16) -> io::Result<TcpListener> {
    in_network_namespace(namespace, || listen((Ipv4Addr::UNSPECIFIED, port).into()))
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = bound(address, SocketType::STREAM)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn datagram(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    Ok(bound(address, SocketType::DGRAM)?.into())
}

fn bound(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        // Connections of an earlier server may still be in TIME_WAIT when a new one adopts the
        // sandbox.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        // The IPv4 socket has the same port.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}
