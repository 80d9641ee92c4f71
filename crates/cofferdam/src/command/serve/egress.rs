//! Opens what connections to hosts with header rules need: the server's certificate authority, and the interceptor.

use std::sync::Arc;

use async_trait::async_trait;
use interception::{Asker, Authority, Interceptor, SecretError, SecretSource};
use zeroize::Zeroizing;

use super::{ServeArguments, settings};
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
pub(super) fn open(arguments: &ServeArguments) -> Result<Egress, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("header rules: {error}"));
    let authority = Authority::open(&arguments.data.egress_ca()).map_err(|error| failed(&error))?;
    let authorities = authority.trusted().to_owned();
    let of_hosts = arguments.egress_ca.as_deref().map(|path| settings::authorities("--egress-ca", path));
    let of_hosts = of_hosts.transpose()?.unwrap_or_default();
    let interceptor = Interceptor::new(Arc::new(authority), &of_hosts, Arc::new(NoSecrets));
    Ok(Egress { interceptor: Arc::new(interceptor.map_err(|error| failed(&error))?), authorities })
}

/// Stands for a team without secrets.
#[derive(Debug)]
struct NoSecrets;

#[async_trait]
impl SecretSource for NoSecrets {
    async fn secret(&self, _: &Asker<'_>, _: &str) -> Result<Zeroizing<String>, SecretError> {
        Err(SecretError::NotFound)
    }
}
