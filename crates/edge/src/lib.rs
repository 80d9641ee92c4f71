//! The one listening port: sandbox traffic goes to ports inside sandboxes, everything else to the REST router.
//! Bodies stream both ways without being collected; what a sandbox sends is never interpreted.
//! When a sandbox ends, its open streams are reset, not finished: nobody mistakes a cut answer for a whole one.
#![forbid(unsafe_code)]

mod connection;
mod guard;
mod half;
mod headers;
mod observe;
mod pages;
mod proxy;
mod target;
mod tunnel;
mod upstream;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use control::Control;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::upstream::Pools;

/// Settings of the edge.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Domain whose subdomains are sandboxes (`<port>-<id>.<domain>`), except `api.` of it. `<port>-<id>` works on any
    /// domain; on this one, malformed hosts are told so instead of being taken for the API.
    pub domain: String,
    /// Most client connections at once; more wait to be accepted. Each may need as many descriptors again.
    pub connections: usize,
    /// How long open requests may go on after the shutdown signal.
    pub drain: Duration,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self { domain: "localhost".to_owned(), connections: 4096, drain: Duration::from_secs(10) }
    }
}

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) api: Router,
    pub(crate) control: Arc<Control>,
    pub(crate) config: EdgeConfig,
    pub(crate) pools: Pools,
    /// Connections, and tunnels that outgrew theirs.
    pub(crate) tasks: TaskTracker,
    /// Ends what is still open when the drain time is over.
    pub(crate) cut: CancellationToken,
}

/// Accepts connections until `shutdown` resolves, then lets open requests finish within the drain time.
///
/// # Errors
/// The listener is of no use any more.
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
        pools: Pools::default(),
        tasks: TaskTracker::new(),
        cut: CancellationToken::new(),
    });
    let closing = CancellationToken::new();
    tokio::pin!(shutdown);
    let places = Arc::new(Semaphore::new(edge.config.connections));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = connection::serve(stream, Arc::clone(&edge), closing.clone());
                let cut = edge.cut.clone();
                edge.tasks.spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = cut.cancelled() => {}
                    }
                    drop(place);
                });
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: some connection has to end first.
                tracing::warn!(%error, "accept failed");
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
    edge.pools.close();
    Ok(())
}

/// The peer was gone before we came to it; the listener is fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
