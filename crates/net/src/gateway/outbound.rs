//! Connections that the interceptor makes for a sandbox, in place of the sandbox's own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use budget::Use;

use super::{DIAL_TIMEOUT, GatewayState, MAX_CONNECTIONS, connect_any};
use crate::intercept::{DialError, Dialled, Outbound};
use crate::policy::{EgressPolicy, SandboxRules};
use crate::proxy::{ProxyTarget, SandboxProxy};
use crate::server_stream::ServerStream;

/// A sandbox, for the interceptor of its connections.
#[derive(Debug)]
pub(super) struct SandboxOutbound(pub(super) Arc<GatewayState>);

#[async_trait]
impl Outbound for SandboxOutbound {
    fn sandbox(&self) -> &str {
        &self.0.sandbox
    }

    fn rules(&self) -> Option<Arc<SandboxRules>> {
        self.0.policy().rules.clone()
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Dialled, DialError> {
        let state = &self.0;
        let policy = state.policy();
        let hairpin = state.config.hairpin.as_ref().filter(|hairpin| hairpin.is_sandbox(host));
        if let Some(proxy) = policy.proxy.as_ref().filter(|_| hairpin.is_none()) {
            return self.dial_by_proxy(proxy, &policy, host, port).await;
        }
        let addresses = state.dns.lookup(host).await;
        if addresses.is_empty() {
            return Err(DialError::Unresolved);
        }
        let by_name = policy.permits_domain(host);
        let permitted = addresses
            .into_iter()
            .filter(|ip| state.is_reachable(*ip) && (by_name || policy.permits_address(*ip)));
        let mut targets: Vec<_> = permitted.map(|ip| SocketAddr::new(ip, port)).collect();
        // The name leads to this host. What the policy says of it was decided when the client connected.
        let own = hairpin.filter(|hairpin| targets.is_empty() && hairpin.has_port(port));
        targets.extend(own.map(|hairpin| hairpin.address));
        if targets.is_empty() {
            return Err(DialError::Denied);
        }
        let share = self.place()?;
        let connected = tokio::time::timeout(DIAL_TIMEOUT, connect_any(&targets)).await;
        let stream =
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(DialError::Failed)?;
        stream.set_nodelay(true).map_err(DialError::Failed)?;
        Ok(Dialled { stream: ServerStream::Tcp(stream), share, is_plain: own.is_some() })
    }
}

impl SandboxOutbound {
    async fn dial_by_proxy(
        &self,
        proxy: &SandboxProxy,
        policy: &EgressPolicy,
        host: &str,
        port: u16,
    ) -> Result<Dialled, DialError> {
        let state = &self.0;
        let target = if policy.permits_domain(host) || policy.leaves_names_to_proxy() {
            ProxyTarget::Name(host.to_owned(), port)
        } else {
            let addresses = state.dns.lookup(host).await;
            let permitted = addresses.into_iter().find(|ip| policy.permits_address(*ip));
            ProxyTarget::Address(SocketAddr::new(permitted.ok_or(DialError::Denied)?, port))
        };
        let share = self.place()?;
        let stream = state.connect_by_proxy(proxy, target).await?;
        Ok(Dialled { stream, share, is_plain: false })
    }

    /// Takes a place among outgoing connections.
    fn place(&self) -> Result<budget::Share, DialError> {
        let state = &self.0;
        let share = state.config.connections.take(state.account(), Use::Busy, MAX_CONNECTIONS);
        share.map_err(|_| DialError::Exhausted)
    }
}
