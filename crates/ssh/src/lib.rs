//! An SSH server in front of all sandboxes: `ssh <sandbox id>@host`. No sshd runs inside: shells and commands are processes of envd, SFTP and
//! connections out of a sandbox are programs that envd starts (`envd sftp`, `envd connect`), so everything has the sandbox's rights and rules.
//!
//! A client proves to have a key that is registered with the sandbox's team, or gives an API key of it as password. Sandboxes of others and
//! sandboxes that do not exist look the same. What a client without either may cost is limited (`limits`).
#![forbid(unsafe_code)]

mod client;
mod cut_stream;
mod forward;
mod host_key;
mod limits;
mod session;
mod target;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_client::{Client, ClientConfig};
use control::Control;
use russh::server::Config;
use russh::{MethodKind, MethodSet, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use client::Connection;
use cut_stream::CutStream;
use limits::{Limits, Place};

/// Time in which a client must have proved who it is.
const LOGIN_TIME: Duration = Duration::from_secs(20);
/// How long a refused proof is answered after, so that guesses take time.
const REJECTION_TIME: Duration = Duration::from_secs(1);
/// Refused proofs of one connection. OpenSSH offers all keys of its agent.
const MAX_ATTEMPTS: usize = 20;
/// How often a silent client is asked whether it is there, and how often it may not answer.
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(60), 3);

/// Why there is no SSH server.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The file of the server's key cannot be used.
    #[error("the key of the SSH server, {path}: {reason}")]
    HostKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server's own address cannot be used.
    #[error(transparent)]
    Client(#[from] cofferdam_client::Error),
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) control: Arc<Control>,
    /// Reaches envd of sandboxes through the server itself.
    pub(crate) client: Client,
    pub(crate) limits: Arc<Limits>,
}

/// An SSH server that is ready to serve.
pub struct SshServer {
    shared: Arc<Shared>,
    config: Arc<Config>,
}

impl SshServer {
    /// Opens the server's key, which is made if there is none. `url` is where the server itself is reached without TLS.
    ///
    /// # Errors
    /// The key's file cannot be used.
    pub fn open(control: Arc<Control>, host_key: &Path, url: &str) -> Result<Self, SshError> {
        let client =
            Client::new(ClientConfig { sandbox_url: Some(url.to_owned()), ..ClientConfig::at(url) })?;
        let config = Config {
            server_id: SshId::Standard("SSH-2.0-Cofferdam".into()),
            methods: MethodSet::from(&[MethodKind::PublicKey, MethodKind::Password][..]),
            keys: vec![host_key::open(host_key)?],
            auth_rejection_time: REJECTION_TIME,
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: MAX_ATTEMPTS,
            inactivity_timeout: None,
            keepalive_interval: Some(KEEPALIVE.0),
            keepalive_max: KEEPALIVE.1,
            nodelay: true,
            ..Config::default()
        };
        let shared = Shared { control, client, limits: Arc::default() };
        Ok(Self { shared: Arc::new(shared), config: Arc::new(config) })
    }

    /// Serves connections until `stop` completes, then ends them all.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = &mut stop => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    // Closed at once without one: whoever has too many is not worth a task.
                    if let Some(place) = Limits::enter(&self.shared.limits, address.ip()) {
                        let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
                        connections.spawn(serve_client(shared, config, stream, place));
                    }
                }
                Err(error) => {
                    warn!(%error, "an SSH connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Serves one connection. A client that has not logged in in time is cut off, wherever it is in the protocol.
async fn serve_client(shared: Arc<Shared>, config: Arc<Config>, stream: TcpStream, place: Place) {
    let (cut, logged_in) = (CancellationToken::new(), CancellationToken::new());
    // Also when this task is aborted, at the end of the server.
    let _cut_at_end = cut.clone().drop_guard();
    let handler = Connection::new(shared, Arc::new(place), logged_in.clone());
    let login = tokio::time::timeout(LOGIN_TIME, logged_in.cancelled());
    let session = async {
        match russh::server::run_stream(config, CutStream::new(stream, cut.clone()), handler).await {
            Ok(session) => session.await,
            Err(error) => Err(error),
        }
    };
    tokio::pin!(session);
    let ended = tokio::select! {
        ended = &mut session => ended,
        login = login => {
            if login.is_err() {
                cut.cancel();
            }
            session.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an SSH connection ended");
    }
}
