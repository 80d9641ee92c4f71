//! Opens what connections to hosts with header rules need: the server's certificate authority, secrets of teams, and the interceptor.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use control::Control;
use egress_rules::EgressProxy;
use ids::TeamId;
use interception::{Asker, Authority, Interceptor, SecretError, SecretSource};
use net::ProxyPasswords;
use parking_lot::Mutex;
use secrets::{Keys, Secrets, SecretsError};
use store::Store;
use tracing::error;
use zeroize::Zeroizing;

use super::secret_uses::SecretUses;
use super::{ServeArguments, authorities};
use crate::failure::Failure;

/// How long further failures are not logged.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// The interceptor, and what sandboxes have to trust for it.
pub(super) struct Egress {
    pub(super) interceptor: Arc<Interceptor>,
    pub(super) secrets: Arc<TeamSecrets>,
    /// PEM.
    pub(super) authorities: String,
}

/// Opens the authority, and makes it at the first start.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn open(arguments: &ServeArguments, secrets: Arc<Secrets>) -> Result<Egress, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("header rules: {error}"));
    let authority = Authority::open(&arguments.data.egress_ca()).map_err(|error| failed(&error))?;
    let trusted = authority.trusted().to_owned();
    let of_hosts = arguments.egress_ca.as_deref().map(|path| authorities::of_file("--egress-ca", path));
    let of_hosts = of_hosts.transpose()?.flatten().unwrap_or_default();
    let secrets = Arc::new(TeamSecrets {
        secrets,
        uses: SecretUses::start(),
        logged: Mutex::default(),
        control: OnceLock::new(),
    });
    let interceptor = Interceptor::new(Arc::new(authority), &of_hosts, Arc::<TeamSecrets>::clone(&secrets));
    let interceptor = Arc::new(interceptor.map_err(|error| failed(&error))?);
    Ok(Egress { interceptor, secrets, authorities: trusted })
}

/// Opens the secrets of teams.
///
/// # Errors
/// The file of the keys cannot be used, or the database fails.
pub(super) async fn open_secrets(
    arguments: &ServeArguments,
    store: Arc<dyn Store>,
) -> Result<Arc<Secrets>, Failure> {
    let path = arguments.secrets_key_file.clone().unwrap_or_else(|| arguments.data.secrets_key());
    let keys = Keys::open(&path).map_err(|error| Failure::new(format!("keys of secrets: {error}")))?;
    Ok(Arc::new(Secrets::open(store, keys).await?))
}

/// The secrets of teams, for the interceptor and for proxies.
#[derive(Debug)]
pub(super) struct TeamSecrets {
    secrets: Arc<Secrets>,
    /// Knows the sandboxes whose identity tokens are made. Set when it is open; before, no sandbox sends one.
    control: OnceLock<Weak<Control>>,
    uses: Arc<SecretUses>,
    /// When a failure was last logged.
    logged: Mutex<Option<Instant>>,
}

impl TeamSecrets {
    /// Says who knows the sandboxes.
    pub(super) fn set_control(&self, control: &Arc<Control>) {
        let _ = self.control.set(Arc::downgrade(control));
    }

    async fn make_token(
        &self,
        team: TeamId,
        sandbox: &str,
        name: &str,
    ) -> Result<Zeroizing<String>, SecretError> {
        let control = self.control.get().and_then(Weak::upgrade).ok_or(SecretError::Unavailable)?;
        let (subject, audience) = control.identity_token(team, sandbox, name).ok_or(SecretError::NotFound)?;
        let issuer = control.issuer().cloned().ok_or(SecretError::NotFound)?;
        // Signing takes a millisecond, and making a new key some seconds.
        let made = tokio::task::spawn_blocking(move || issuer.token(&subject, &audience)).await;
        let made = made.map_err(|_| SecretError::Unavailable)?;
        made.map_err(|failure| {
            self.log_failure(&failure, "the key of identity tokens");
            SecretError::Unavailable
        })
    }

    /// Logs a failure, but not each one: sandboxes cause as many as they make requests.
    fn log_failure(&self, failure: &dyn std::fmt::Display, what: &str) {
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| at.elapsed() > LOG_PAUSE) {
            *logged = Some(Instant::now());
            error!(%failure, "{what} cannot be read");
        }
    }
}

#[async_trait]
impl SecretSource for TeamSecrets {
    async fn secret(&self, asker: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError> {
        let Asker { team, sandbox, host } = *asker;
        let value = self.secrets.value(TeamId::from_u128(team), name, host).await;
        let outcome = match &value {
            Ok(_) => "sent",
            Err(SecretsError::NotFound | SecretsError::Invalid | SecretsError::Conflict) => "not found",
            Err(SecretsError::NotForHost) => "not for this host",
            Err(SecretsError::Store(_) | SecretsError::Key(_)) => "failed",
        };
        self.uses.note(sandbox, name, host, outcome);
        value.map_err(|failure| match failure {
            SecretsError::NotForHost => SecretError::NotForHost,
            SecretsError::Store(_) | SecretsError::Key(_) => {
                self.log_failure(&failure, "a secret");
                SecretError::Unavailable
            }
            _ => SecretError::NotFound,
        })
    }

    async fn identity_token(&self, asker: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError> {
        let Asker { team, sandbox, host } = *asker;
        let token = self.make_token(TeamId::from_u128(team), sandbox, name).await;
        let outcome = match &token {
            Ok(_) => "sent",
            Err(SecretError::NotFound | SecretError::NotForHost) => "not found",
            Err(SecretError::Unavailable) => "failed",
        };
        self.uses.note(sandbox, &format!("identity token {name}"), host, outcome);
        token
    }
}

impl ProxyPasswords for TeamSecrets {
    fn password(&self, team: u128, proxy: &EgressProxy) -> Option<Zeroizing<String>> {
        let password = self.secrets.proxy_password(TeamId::from_u128(team), proxy);
        password.inspect_err(|failure| self.log_failure(failure, "the password of a proxy")).ok()
    }
}
