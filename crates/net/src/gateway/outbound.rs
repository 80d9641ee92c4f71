//! Connections that the interceptor makes for a sandbox, in place of the sandbox's own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use budget::{Share, Use};

use super::{DIAL_TIMEOUT, GatewayState, connect_any};
use crate::connection_log::{Note, TRAFFIC_USED_UP};
use crate::intercept::{DialError, Dialled, Outbound};
use crate::policies::Policies;
use crate::policy::SandboxRules;
use crate::proxy::{ProxyTarget, SandboxProxy};
use crate::server_stream::Transport;

/// A sandbox, for the interceptor of its connections.
#[derive(Debug)]
pub(super) struct SandboxOutbound(pub(super) Arc<GatewayState>);

#[async_trait]
impl Outbound for SandboxOutbound {
    fn sandbox(&self) -> &str {
        &self.0.sandbox
    }

    fn rules(&self) -> Option<Arc<SandboxRules>> {
        self.0.policies().rules.clone()
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Dialled, DialError> {
        let mut note = self.0.note(Some(host.to_owned()), None, port);
        let (transport, address, is_plain, share) = match self.connect(host, port).await {
            Ok(connected) => connected,
            Err(error) => {
                note_error(&mut note, &error);
                return Err(error);
            }
        };
        Ok(Dialled { stream: self.0.metered(transport, note, address), share, is_plain })
    }
}

/// A connection, the address that it leads to, whether that is the server itself, and its place.
type Connected = (Transport, Option<IpAddr>, bool, Share);

impl SandboxOutbound {
    async fn connect(&self, host: &str, port: u16) -> Result<Connected, DialError> {
        let state = &self.0;
        if state.traffic.is_used_up() {
            return Err(DialError::UsedUp);
        }
        let policies = state.policies();
        let hairpin = state.config.hairpin.as_ref().filter(|hairpin| hairpin.is_sandbox(host));
        if let Some(proxy) = policies.proxy.as_ref().filter(|_| hairpin.is_none()) {
            return self.connect_by_proxy(proxy, &policies, host, port).await;
        }
        let addresses = state.dns.lookup(host).await;
        if addresses.is_empty() {
            return Err(DialError::Unresolved);
        }
        let permitted =
            addresses.into_iter().filter(|ip| state.is_reachable(*ip) && policies.permit(*ip, host));
        let mut targets: Vec<_> = permitted.map(|ip| SocketAddr::new(ip, port)).collect();
        // The name leads to this host. What the policies say of it was decided when the client connected.
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
        let address = stream.peer_addr().ok().map(|peer| peer.ip());
        Ok((Transport::Tcp(stream), address, own.is_some(), share))
    }

    async fn connect_by_proxy(
        &self,
        proxy: &SandboxProxy,
        policies: &Policies,
        host: &str,
        port: u16,
    ) -> Result<Connected, DialError> {
        let state = &self.0;
        let target = if policies.leave_to_proxy(host) {
            ProxyTarget::Name(host.to_owned(), port)
        } else {
            let addresses = state.dns.lookup(host).await;
            let permitted = addresses.into_iter().find(|ip| policies.permit(*ip, host));
            ProxyTarget::Address(SocketAddr::new(permitted.ok_or(DialError::Denied)?, port))
        };
        let share = self.place()?;
        let address = target.address();
        Ok((state.connect_by_proxy(proxy, target).await?, address, false, share))
    }

    /// Takes a place among outgoing connections.
    fn place(&self) -> Result<Share, DialError> {
        let config = &self.0.config;
        let share = config.connections.take(self.0.account(), Use::Busy, config.max_connections);
        share.map_err(|_| DialError::Exhausted)
    }
}

fn note_error(note: &mut Note, error: &DialError) {
    match error {
        DialError::Denied => note.refused("the name has no reachable address"),
        DialError::Exhausted => note.refused("the sandbox has too many connections"),
        DialError::UsedUp => note.refused(TRAFFIC_USED_UP),
        DialError::Unresolved | DialError::Failed(_) | DialError::Proxy(_) => note.failed(error),
    }
}
