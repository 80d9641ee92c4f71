//! The server's listening ports, with TLS and without: requests to sandboxes are proxied to their ports, all others go to the REST router.
//! Bodies are streamed in both directions and never buffered whole; what a sandbox sends is never interpreted.
//! When a sandbox ends, its open streams are reset, so that no client takes a truncated response for a complete one.
#![forbid(unsafe_code)]

mod clients;
mod closing;
mod connection;
mod credentials;
mod half_closed;
mod headers;
mod hops;
mod listener;
mod observe;
mod pages;
mod proxy;
mod proxy_protocol;
mod public;
mod response_body;
mod stream;
mod target;
mod tls;
mod tunnel;
mod upstream;
mod wrong_credentials;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use budget::Budget;
use control::Control;
use net::Cidr;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::Clients;
pub use crate::listener::{Listener, Protocol};
pub use crate::public::PublicUrl;
pub use crate::tls::{CurrentCertificate, tls_config, tls_provider};
use crate::upstream::IdleConnections;
use crate::wrong_credentials::WrongCredentials;

/// Settings of the edge.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Domain whose subdomains, except `api.`, are sandboxes: `<port>-<id>.<domain>`. That form works on any domain; on
    /// this one, malformed hosts get an error instead of being taken for the API.
    pub domain: String,
    /// Address at which clients reach the API. Without it links in responses begin with what each client used.
    pub public_url: Option<PublicUrl>,
    /// Networks of proxies whose `X-Forwarded-` headers are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Servers in sandboxes are told the client's address, scheme and host.
    pub forwarded_headers: bool,
    /// How long browsers that came by HTTPS shall use nothing else, seconds.
    pub hsts: Option<u32>,
    /// Connections of clients. When all are taken, idle ones without credentials are closed for new ones, and further ones are refused.
    pub client_connections: Arc<Budget>,
    /// Connections to servers in sandboxes.
    pub sandbox_connections: Arc<Budget>,
    /// Time that open requests have to finish after the shutdown signal.
    pub drain: Duration,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            domain: "localhost".to_owned(),
            public_url: None,
            trusted_proxies: Vec::new(),
            forwarded_headers: false,
            hsts: None,
            client_connections: Budget::new("client connections", 4096),
            sandbox_connections: Budget::new("connections to sandboxes", 4096),
            drain: Duration::from_secs(10),
        }
    }
}

impl EdgeConfig {
    /// Whether an address is that of a proxy whose headers are believed.
    pub(crate) fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }
}

/// State shared by all connections.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) api: Router,
    pub(crate) control: Arc<Control>,
    pub(crate) config: EdgeConfig,
    pub(crate) idle: IdleConnections,
    pub(crate) wrong_credentials: WrongCredentials,
    /// Tasks of connections, and of tunnels that outlive the request that opened them.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the drain time is over: ends all that is still open.
    pub(crate) cut: CancellationToken,
}

/// Accepts connections until `shutdown` resolves, then lets open requests finish within the drain time.
///
/// # Errors
/// Currently none: failed accepts are logged and tried again.
pub async fn serve(
    listeners: Vec<Listener>,
    api: Router,
    control: Arc<Control>,
    config: EdgeConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let drain = config.drain;
    let edge = Arc::new(Edge {
        api,
        control,
        config,
        idle: IdleConnections::default(),
        wrong_credentials: WrongCredentials::default(),
        tasks: TaskTracker::new(),
        cut: CancellationToken::new(),
    });
    let closing = CancellationToken::new();
    let clients = Clients::new(Arc::clone(&edge.config.client_connections));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, clients.clone(), Arc::clone(&edge), closing.clone()));
    }
    shutdown.await;
    closing.cancel();
    // The sockets are closed then.
    while accepting.join_next().await.is_some() {}
    edge.tasks.close();
    if tokio::time::timeout(drain, edge.tasks.wait()).await.is_err() {
        edge.cut.cancel();
        edge.tasks.wait().await;
    }
    edge.idle.close();
    Ok(())
}

/// Accepts and serves connections of one socket until the server is `closing`.
async fn accept(listener: Listener, clients: Clients, edge: Arc<Edge>, closing: CancellationToken) {
    let listener = Arc::new(listener);
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            () = closing.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                // Without a place for it, it is closed.
                let Some(client) = clients.admit(address) else { continue };
                let (listener, clients, closing) = (Arc::clone(&listener), clients.clone(), closing.clone());
                let edge = Arc::clone(&edge);
                let cut = edge.cut.clone();
                edge.clone().tasks.spawn(async move {
                    let served = async {
                        let begun =
                            listener::begin(stream, address, client, &clients, &listener, &edge, &closing)
                                .await;
                        if let Some(begun) = begun {
                            connection::serve(begun, edge, closing).await;
                        }
                    };
                    tokio::select! {
                        () = served => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
            Err(error) if is_client_gone(&error) => {}
            Err(error) => {
                // Most likely out of descriptors: some connection has to end first.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether an accept failed because that client went away; the listener still works then.
fn is_client_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
