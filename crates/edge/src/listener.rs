//! The sockets that clients connect to, and how a connection begins on each: with the header of a proxy, with a TLS handshake, or with neither.
//! A beginning has a time limit, and its connection has a place among those of anonymous clients already.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clients::{Client, Clients};
use crate::stream::ClientStream;
use crate::{Edge, proxy_protocol};

/// Time limit for a connection's TLS handshake and the header of a proxy.
const MAX_BEGINNING: Duration = Duration::from_secs(10);

/// A listening socket and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// What is spoken on its connections.
    pub protocol: Protocol,
    /// Connections of trusted proxies begin with a header of the PROXY protocol, version 2, which names the client.
    pub has_proxy_header: bool,
}

/// What is spoken on connections to a socket.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 if the client begins with its preface.
    Plain,
    /// The same, from sandboxes: only public hosts of sandboxes are served, and nothing that a proxy would say is believed.
    Inside,
    /// The same over TLS; see [`crate::tls_config`].
    Tls(Arc<ServerConfig>),
    /// HTTP, of which every request is redirected to the same host by HTTPS.
    Redirect {
        /// The port of HTTPS.
        port: u16,
    },
}

/// A connection whose beginning has succeeded.
pub(crate) struct Begun {
    pub(crate) stream: ClientStream,
    pub(crate) client: Arc<Client>,
    pub(crate) origin: Origin,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Address of the client, or of the last proxy before us that did not say whose connection it is.
    pub(crate) address: IpAddr,
    /// The connection was opened by a proxy whose `X-Forwarded-` headers are believed.
    pub(crate) is_proxied: bool,
    /// The client spoke TLS: with us, or with a proxy that says so.
    pub(crate) is_tls: bool,
    /// The port of HTTPS that all requests are redirected to.
    pub(crate) redirect: Option<u16>,
    /// It comes from a sandbox, by way of the gateway.
    pub(crate) is_inside: bool,
}

/// Performs what comes before a connection's first request. Returns `None` if it failed, took too long, or its place was needed.
pub(crate) async fn begin(
    stream: TcpStream,
    address: IpAddr,
    client: Arc<Client>,
    clients: &Clients,
    listener: &Listener,
    edge: &Edge,
    closing: &CancellationToken,
) -> Option<Begun> {
    // Small responses must go out at once. If this fails, the peer is gone, and the first read fails too.
    let _ = stream.set_nodelay(true);
    let protocol = &listener.protocol;
    let is_inside = matches!(protocol, Protocol::Inside);
    let is_proxied = !is_inside && edge.config.is_trusted_proxy(address);
    let redirect = if let Protocol::Redirect { port } = protocol { Some(*port) } else { None };
    let origin = Origin { address, is_proxied, is_tls: false, redirect, is_inside };
    let has_header = is_proxied && listener.has_proxy_header;
    if !has_header && !matches!(protocol, Protocol::Tls(_)) {
        return Some(Begun { stream: ClientStream::Plain(stream), client, origin });
    }
    let place = Arc::clone(&client);
    let steps = async {
        let mut begun = Begun { stream: ClientStream::Plain(stream), client, origin };
        if has_header {
            begun = read_proxy_header(begun, clients, edge).await?;
        }
        match protocol {
            Protocol::Tls(config) => shake_hands(begun, config).await,
            Protocol::Plain | Protocol::Inside | Protocol::Redirect { .. } => Some(begun),
        }
    };
    tokio::select! {
        begun = tokio::time::timeout(MAX_BEGINNING, steps) => begun.ok().flatten(),
        () = place.must_close() => None,
        () = closing.cancelled() => None,
    }
}

/// Reads the header of the PROXY protocol, and has the connection count for the client that it names.
async fn read_proxy_header(begun: Begun, clients: &Clients, edge: &Edge) -> Option<Begun> {
    let Begun { stream: ClientStream::Plain(mut stream), client, origin } = begun else { return None };
    let header = match proxy_protocol::read(&mut stream).await {
        Ok(header) => header,
        Err(error) => {
            tracing::warn!(proxy = %origin.address, %error, "a trusted proxy sent no header of the PROXY protocol, version 2");
            return None;
        }
    };
    let stream = ClientStream::Plain(stream);
    // Without a client: the proxy itself checks whether we are alive.
    let Some(address) = header.client else { return Some(Begun { stream, client, origin }) };
    // Its headers are the client's own, unless that is a proxy too.
    let is_proxied = edge.config.is_trusted_proxy(address);
    let origin = Origin { address, is_proxied, is_tls: header.is_tls, ..origin };
    drop(client);
    Some(Begun { stream, client: clients.admit(address)?, origin })
}

async fn shake_hands(begun: Begun, config: &Arc<ServerConfig>) -> Option<Begun> {
    let Begun { stream: ClientStream::Plain(stream), client, origin } = begun else { return None };
    match TlsAcceptor::from(Arc::clone(config)).accept(stream).await {
        Ok(stream) => {
            let stream = ClientStream::Tls(Box::new(stream));
            Some(Begun { stream, client, origin: Origin { is_tls: true, ..origin } })
        }
        Err(error) => {
            tracing::debug!(client = %origin.address, %error, "a TLS handshake failed");
            None
        }
    }
}
