//! Interception: serves TLS connections of sandboxes to hosts that have header rules, in the place of those hosts, and sets the headers.
//!
//! The gateway hands over a connection whose server name (SNI) has a rule with headers; all others never come here. The client is shown a
//! certificate of the server's own [`Authority`], each request is checked to be for that very host, the rule is looked up, placeholders
//! are replaced by secrets, and the request goes to the host over a connection whose certificate is verified. So a program in a sandbox
//! uses a secret and never has it, unless the host sends it back.
#![forbid(unsafe_code)]

mod authority;
mod headers;
mod leaves;
mod prefixed;
mod refusal;
mod serve;
mod target;
mod upstream;

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use net::Intercepted;
use zeroize::Zeroizing;

pub use authority::{Authority, AuthorityError, rotate};
use leaves::Leaves;
use upstream::TlsClients;

/// Where the values come from that replace placeholders.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync {
    /// Returns the present value of a team's secret, for a request of a sandbox to a host.
    async fn secret(&self, asker: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError>;

    /// Returns a token for the identity of a sandbox, for a request to a host.
    async fn identity_token(&self, asker: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError>;
}

/// For what a secret is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The team of the sandbox.
    pub team: u128,
    /// The sandbox.
    pub sandbox: &'a str,
    /// The host that the secret is sent to.
    pub host: &'a str,
}

/// Why there is no value for a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretError {
    /// The team has no such secret.
    NotFound,
    /// It may not be sent to this host.
    NotForHost,
    /// It cannot be read at the moment.
    Unavailable,
}

/// Serves intercepted connections.
#[derive(Debug)]
pub struct Interceptor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    leaves: Leaves,
    tls: TlsClients,
    secrets: Arc<dyn SecretSource>,
}

impl Interceptor {
    /// Creates an interceptor. `authorities` are further ones that hosts may have their certificates from, PEM. Blocks for some
    /// milliseconds to read the system's.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new(
        authority: Arc<Authority>,
        authorities: &str,
        secrets: Arc<dyn SecretSource>,
    ) -> Result<Self, rustls::Error> {
        let tls = TlsClients::new(authorities);
        Ok(Self(Arc::new(Inner { leaves: Leaves::new(authority)?, tls, secrets })))
    }
}

#[async_trait]
impl net::Interceptor for Interceptor {
    async fn intercept(&self, connection: Intercepted) -> io::Result<()> {
        serve::serve(&self.0, connection).await
    }
}
