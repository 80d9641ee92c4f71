//! Opens what connections to hosts with header rules need: the server's certificate authority, secrets of teams, and the interceptor.

use std::sync::Arc;

use async_trait::async_trait;
use ids::TeamId;
use interception::{Asker, Authority, Interceptor, SecretError, SecretSource};
use secrets::{Keys, Secrets, SecretsError};
use store::Store;
use tracing::{error, info};
use zeroize::Zeroizing;

use super::{ServeArguments, authorities};
use crate::failure::Failure;

/// The interceptor, and what sandboxes have to trust for it.
pub(super) struct Egress {
    pub(super) interceptor: Arc<Interceptor>,
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
    let interceptor = Interceptor::new(Arc::new(authority), &of_hosts, Arc::new(TeamSecrets(secrets)));
    Ok(Egress { interceptor: Arc::new(interceptor.map_err(|error| failed(&error))?), authorities: trusted })
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

/// The secrets of teams, for the interceptor.
#[derive(Debug)]
struct TeamSecrets(Arc<Secrets>);

#[async_trait]
impl SecretSource for TeamSecrets {
    async fn secret(&self, asker: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError> {
        let Asker { team, sandbox, host } = *asker;
        let value = self.0.value(TeamId::from_u128(team), name, host).await;
        let outcome = match &value {
            Ok(_) => "sent",
            Err(SecretsError::NotFound | SecretsError::Invalid | SecretsError::Conflict) => "not found",
            Err(SecretsError::NotForHost) => "not for this host",
            Err(SecretsError::Store(_) | SecretsError::Key(_)) => "failed",
        };
        // Who used which secret where: never its value.
        info!(target: "audit", sandbox_id = sandbox, secret = name, host, outcome, "secret");
        value.map_err(|failure| match failure {
            SecretsError::NotForHost => SecretError::NotForHost,
            SecretsError::Store(_) | SecretsError::Key(_) => {
                error!(%failure, "a secret cannot be read");
                SecretError::Unavailable
            }
            _ => SecretError::NotFound,
        })
    }
}
