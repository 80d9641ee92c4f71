//! Connections to servers inside sandboxes: HTTP/1.1 over a stream the engine dials.
//! Servers of users get a connection per request, as they would from a browser's first visit;
//! the agent's are kept for a while, because its calls come in rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use control::{ENVD_PORT, Live};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ids::ExecutionId;
use tokio::time::Instant;

use crate::connection::H1_BUFFER;
use crate::half::ToServer;

/// How long an idle connection to an agent is kept: shorter than any server's own patience.
const IDLE: Duration = Duration::from_secs(30);
/// Most idle connections to one agent.
const MAX_IDLE: usize = 4;

pub(crate) type Sender = SendRequest<Body>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot connect: {0}")]
    Dial(#[from] std::io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
}

/// Idle connections to agents, by run: a resumed or restarted sandbox never gets one of its former life.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pools {
    inner: Arc<Mutex<HashMap<ExecutionId, Vec<Idle>>>>,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
}

impl Pools {
    fn take(&self, execution: ExecutionId) -> Option<Sender> {
        let mut pools = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.get_mut(&execution)?;
        while let Some(idle) = pool.pop() {
            if idle.sender.is_ready() && idle.since.elapsed() < IDLE {
                return Some(idle.sender);
            }
        }
        None
    }

    /// Keeps a connection whose last answer has been read to its end.
    pub(crate) fn put(&self, live: &Arc<Live>, sender: Sender) {
        if sender.is_closed() || live.has_ended() {
            return;
        }
        let idle = Idle { sender, since: Instant::now() };
        let first = {
            let mut pools = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let first = !pools.contains_key(&live.execution);
            let pool = pools.entry(live.execution).or_default();
            if pool.len() < MAX_IDLE {
                pool.push(idle);
            }
            first
        };
        if first {
            tokio::spawn(self.clone().tend(Arc::clone(live)));
        }
    }

    /// Drops what has been idle for too long, and everything when the sandbox ends; goes when nothing is left.
    async fn tend(self, live: Arc<Live>) {
        loop {
            let ended = tokio::time::timeout(IDLE, live.wait_ended()).await.is_ok();
            let mut pools = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(pool) = pools.get_mut(&live.execution) else { return };
            pool.retain(|idle| !ended && idle.since.elapsed() < IDLE && !idle.sender.is_closed());
            if pool.is_empty() {
                pools.remove(&live.execution);
                return;
            }
        }
    }

    /// Drops everything.
    pub(crate) fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Sends a request to a port of a sandbox. A connection that may be used again comes back with the answer.
pub(crate) async fn send(
    pools: &Pools,
    live: &Live,
    port: u16,
    mut request: Request<Body>,
    reusable: bool,
) -> Result<(Response<Incoming>, Option<Sender>), Failure> {
    let reusable = reusable && port == ENVD_PORT;
    while reusable && let Some(mut sender) = pools.take(live.execution) {
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Some(sender))),
            // It was closed under our hands and nothing has been sent: once more.
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(error.into_error().into()),
            },
        }
    }
    let stream = live.dial(port).await?;
    // Failing means the peer is gone, which the first write tells.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        Builder::new().max_buf_size(H1_BUFFER).handshake(TokioIo::new(ToServer::new(stream))).await?;
    tokio::spawn(async move {
        // Whoever waits for the answer is told of the failure; here it is only noise.
        let _ = connection.with_upgrades().await;
    });
    let response = sender.send_request(request).await?;
    Ok((response, reusable.then_some(sender)))
}
