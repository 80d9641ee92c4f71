//! Opens what connections to hosts with header rules need: the server's certificate authority, secrets of teams, and the interceptor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
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
    pub(super) passwords: Arc<dyn ProxyPasswords>,
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
    let secrets = Arc::new(TeamSecrets { secrets, uses: SecretUses::start(), logged: Mutex::default() });
    let interceptor = Interceptor::new(Arc::new(authority), &of_hosts, Arc::<TeamSecrets>::clone(&secrets));
    let interceptor = Arc::new(interceptor.map_err(|error| failed(&error))?);
    Ok(Egress { interceptor, passwords: secrets, authorities: trusted })
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
struct TeamSecrets {
    secrets: Arc<Secrets>,
    uses: Arc<SecretUses>,
    /// When a failure was last logged.
    logged: Mutex<Option<Instant>>,
}

impl TeamSecrets {
    /// Logs a failure, but not each one: sandboxes cause as many as they make requests.
    fn log_failure(&self, failure: &SecretsError, what: &str) {
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
}

impl ProxyPasswords for TeamSecrets {
    fn password(&self, team: u128, proxy: &EgressProxy) -> Option<Zeroizing<String>> {
        let password = self.secrets.proxy_password(TeamId::from_u128(team), proxy);
        password.inspect_err(|failure| self.log_failure(failure, "the password of a proxy")).ok()
    }
}
