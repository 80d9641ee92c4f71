//! Connects into a sandbox: the socket is created in the sandbox's namespace and then used from
//! outside.
//!
//! Such a connection reaches servers that are bound to 127.0.0.1 or ::1 as well as those on all
//! addresses, so no port forwarder is needed. It takes about 40 µs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sys::{Namespace, in_network_namespace, set_bind_address_no_port, set_mark};
use tokio::net::{TcpSocket, TcpStream};

/// Source address of the server's connections to envd, in every sandbox of every engine. envd trusts connections from it, because no code
/// in a sandbox can make one: in a container a firewall rule drops packets from this address without [`CONTROL_MARK`]; in a guest
/// it is the host's end of the link.
pub const CONTROL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

/// Mark on packets of the server's own sockets in a container's namespace. Setting a mark needs a capability over the
/// namespace that sandboxes do not have.
pub(crate) const CONTROL_MARK: u32 = 0x00cf_0001;

/// Connects to `port` on the loopback of `namespace`, over IPv4 or else IPv6.
///
/// # Errors
/// `ConnectionRefused` if nothing listens on either loopback address.
pub async fn dial(namespace: &Namespace, port: u16) -> io::Result<TcpStream> {
    match connect(namespace, Ipv4Addr::LOCALHOST.into(), port).await {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            connect(namespace, Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| refused)
        }
        answer => answer,
    }
}

/// Connects to `host` from a socket in `namespace`.
///
/// # Errors
/// `ConnectionRefused` if nothing listens there.
pub async fn connect(namespace: &Namespace, host: IpAddr, port: u16) -> io::Result<TcpStream> {
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = in_network_namespace(namespace, || socket(family))?;
    finish(socket, SocketAddr::new(host, port)).await
}

/// Connects to `port` on a container's loopback from [`CONTROL_ADDRESS`].
///
/// # Errors
/// `ConnectionRefused` when nothing listens on the IPv4 loopback address.
pub async fn dial_as_control(namespace: &Namespace, port: u16) -> io::Result<TcpStream> {
    let socket = in_network_namespace(namespace, || {
        let socket = socket(AddressFamily::INET)?;
        set_mark(&socket, CONTROL_MARK)?;
        set_bind_address_no_port(&socket)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(CONTROL_ADDRESS, 0))?;
        Ok(socket)
    })?;
    finish(socket, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

async fn finish(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{configure, listen_in};

    const PORT: u16 = 49983;

    #[tokio::test]
    async fn only_the_server_connects_from_the_control_address() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        let listener = listen_in(&namespace, PORT).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();

        let forged = in_network_namespace(&namespace, || {
            let socket = socket(AddressFamily::INET)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(CONTROL_ADDRESS, 0))?;
            Ok(socket)
        });
        let forged = finish(forged.unwrap(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
        let forged = tokio::time::timeout(Duration::from_millis(200), forged).await;
        assert!(!matches!(forged, Ok(Ok(_))), "a socket without the mark got through");

        let control = dial_as_control(&namespace, PORT).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, control.local_addr().unwrap(), "the forged connection came first");
        assert_eq!(peer.ip(), IpAddr::V4(CONTROL_ADDRESS));

        let ordinary = dial(&namespace, PORT).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, ordinary.local_addr().unwrap());
        assert_eq!(peer.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
