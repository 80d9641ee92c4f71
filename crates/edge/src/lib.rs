//! The server's listening port: requests to sandboxes are proxied to their ports, all others go to the REST router.
//! Bodies are streamed in both directions and never buffered whole; what a sandbox sends is never interpreted.
//! When a sandbox ends, its open streams are reset, so that no client takes a truncated response for a complete one.
#![forbid(unsafe_code)]

mod clients;
mod connection;
mod credentials;
mod half_closed;
mod headers;
mod observe;
mod pages;
mod proxy;
mod response_body;
mod target;
mod tunnel;
mod upstream;
mod wrong_credentials;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use budget::Budget;
use control::Control;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::Clients;
use crate::upstream::IdleConnections;
use crate::wrong_credentials::WrongCredentials;

/// Settings of the edge.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Domain whose subdomains, except `api.`, are sandboxes: `<port>-<id>.<domain>`. That form works on any domain; on
    /// this one, malformed hosts get an error instead of being taken for the API.
    pub domain: String,
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
            client_connections: Budget::new("client connections", 4096),
            sandbox_connections: Budget::new("connections to sandboxes", 4096),
            drain: Duration::from_secs(10),
        }
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
    listener: TcpListener,
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
    tokio::pin!(shutdown);
    let clients = Clients::new(Arc::clone(&edge.config.client_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Without a place for it, it is closed.
                let Some(client) = clients.admit(peer.ip()) else { continue };
                let connection = connection::serve(stream, client, Arc::clone(&edge), closing.clone());
                let cut = edge.cut.clone();
                edge.tasks.spawn(async move {
                    tokio::select! {
                        () = connection => {}
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
    drop(listener);
    closing.cancel();
    edge.tasks.close();
    if tokio::time::timeout(drain, edge.tasks.wait()).await.is_err() {
        edge.cut.cancel();
        edge.tasks.wait().await;
    }
    edge.idle.close();
    Ok(())
}

/// Whether an accept failed because that client went away; the listener still works then.
fn is_client_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
