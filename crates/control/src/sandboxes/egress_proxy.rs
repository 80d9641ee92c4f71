//! The proxy of a sandbox's connections (`network.egressProxy`), from the request to its stored form.

use egress_rules::{EgressProxy, ProxyError, ProxyRequest};
use ids::TeamId;

use crate::{Control, ControlError};

impl Control {
    /// Checks a proxy if there is one, also that its host has no internal address, and encrypts its password.
    ///
    /// # Errors
    /// Something is not valid, or this server has no proxies.
    pub(super) async fn accept_proxy(
        &self,
        team: TeamId,
        request: Option<&ProxyRequest>,
    ) -> Result<Option<EgressProxy>, ControlError> {
        let Some(request) = request else { return Ok(None) };
        let mut proxy = request.check().map_err(|error| invalid(&error))?;
        let (Some(hosts), Some(secrets)) = (&self.config.proxy_hosts, &self.config.secrets) else {
            return Err(ControlError::Invalid(
                "network.egressProxy is not supported by this server".to_owned(),
            ));
        };
        hosts.check(&proxy).await.map_err(|reason| invalid(&ProxyError(reason)))?;
        if proxy.username.is_some()
            && let Some(password) = &request.password
        {
            let sealed = secrets.seal_proxy_password(team, &proxy, password).map_err(|error| {
                tracing::error!(%error, "failed to encrypt the password of a proxy");
                ControlError::Invalid(
                    "the password of the egress proxy cannot be stored at the moment".to_owned(),
                )
            })?;
            proxy.sealed_password = Some(sealed);
        }
        Ok(Some(proxy))
    }
}

fn invalid(error: &ProxyError) -> ControlError {
    ControlError::Invalid(error.to_string())
}
