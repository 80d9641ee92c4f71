//! What an interceptor of TLS connections and the gateway say to each other. The interceptor itself is in another crate.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use budget::Share;
use tokio::net::TcpStream;

use crate::policy::SandboxRules;
use crate::proxy::ProxyFailure;
use crate::server_stream::ServerStream;

/// Serves connections to hosts that have header rules, in the place of those hosts.
#[async_trait]
pub trait Interceptor: fmt::Debug + Send + Sync {
    /// Serves one connection to its end.
    async fn intercept(&self, connection: Intercepted) -> io::Result<()>;
}

/// A TLS connection to a host that has a header rule.
#[derive(Debug)]
pub struct Intercepted {
    /// The connection of the program in the sandbox.
    pub client: TcpStream,
    /// What the client has sent so far: its ClientHello, and perhaps more.
    pub head: Vec<u8>,
    /// The host that the client asks for (SNI), in lower case.
    pub host: String,
    /// The port that it connected to.
    pub port: u16,
    /// The sandbox.
    pub outbound: Arc<dyn Outbound>,
}

/// What an interceptor may know and use of the sandbox whose connection it serves.
#[async_trait]
pub trait Outbound: fmt::Debug + Send + Sync {
    /// Returns the id of the sandbox.
    fn sandbox(&self) -> &str;

    /// Returns the sandbox's header rules at this moment.
    fn rules(&self) -> Option<Arc<SandboxRules>>;

    /// Connects to a host on the sandbox's account: to an address that the host's resolvers return and that the policy permits now.
    async fn dial(&self, host: &str, port: u16) -> Result<Dialled, DialError>;
}

/// A connection to a host.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: ServerStream,
    /// Its place among outgoing connections. When it is revoked, the connection must be closed.
    pub share: Share,
    /// It leads to this very server, which is not spoken to by TLS.
    pub is_plain: bool,
}

/// Why there is no connection to a host. The texts are shown in the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the host name cannot be resolved")]
    Unresolved,
    /// The policy or the server permits none of its addresses.
    #[error("the host has no address that the sandbox may reach")]
    Denied,
    /// There are too many connections.
    #[error("the sandbox has too many outgoing connections")]
    Exhausted,
    /// The sandbox has had all the bytes that it may.
    #[error("the sandbox's limit of bytes is reached")]
    UsedUp,
    /// No address accepted a connection in time.
    #[error("cannot connect to the host: {0}")]
    Failed(io::Error),
    /// The sandbox's proxy did not connect to it.
    #[error(transparent)]
    Proxy(#[from] ProxyFailure),
}
