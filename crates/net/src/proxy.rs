//! The SOCKS5 proxy of a sandbox (`network.egressProxy`): its address is resolved and checked at each connection, and a connection that
//! it does not make is refused, never made directly.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use egress_rules::{EgressProxy, ProxyTls};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_socks::TargetAddr;
use tokio_socks::tcp::Socks5Stream;
use zeroize::Zeroizing;

use crate::dns::{Dns, DnsTotal, Resolvers};
use crate::gateway::is_host_address;
use crate::policy::{Cidr, is_never_public};
use crate::server_stream::Transport;

/// Maximum time from the resolution of the proxy's name until it has connected to the destination.
const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the passwords of proxies come from, which are stored encrypted.
pub trait ProxyPasswords: fmt::Debug + Send + Sync {
    /// Returns the password for a proxy of a team; `None` if it cannot be decrypted.
    fn password(&self, team: u128, proxy: &EgressProxy) -> Option<Zeroizing<String>>;
}

/// The proxy of one sandbox, ready for use.
#[derive(Clone)]
pub struct SandboxProxy {
    team: u128,
    settings: EgressProxy,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for SandboxProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxProxy").field("host", &self.settings.host).finish_non_exhaustive()
    }
}

impl PartialEq for SandboxProxy {
    fn eq(&self, other: &Self) -> bool {
        (self.team, &self.settings) == (other.team, &other.settings)
    }
}

impl Eq for SandboxProxy {}

/// Why there is no connection through the proxy. The texts are shown in the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFailure {
    /// The proxy's name has no address.
    #[error("egress proxy: its host name cannot be resolved")]
    Unresolved,
    /// The proxy's name leads to an address that it may not have.
    #[error("egress proxy: its address is internal or denied")]
    Denied,
    /// The password cannot be decrypted.
    #[error("egress proxy: its password cannot be read at the moment")]
    Password,
    /// The destination may not be reached through this proxy.
    #[error("egress proxy: the destination is internal or denied")]
    Destination,
    /// It did not connect to the destination in time.
    #[error("egress proxy: no connection within {} seconds", PROXY_TIMEOUT.as_secs())]
    TimedOut,
    /// It cannot be connected to.
    #[error("egress proxy: cannot connect to it: {0}")]
    Connect(io::Error),
    /// TLS with it failed.
    #[error("egress proxy: TLS failed: {0}")]
    Tls(io::Error),
    /// It refused the user or the destination.
    #[error("egress proxy: {0}")]
    Refused(#[from] tokio_socks::Error),
}

/// What a proxy is asked to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyTarget {
    /// A name that the policy permits; the proxy resolves it.
    Name(String, u16),
    /// An address that the policy permits.
    Address(SocketAddr),
}

impl ProxyTarget {
    /// Returns the address; none if the proxy resolves a name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Name(..) => None,
            Self::Address(address) => Some(address.ip()),
        }
    }
}

impl SandboxProxy {
    /// Prepares a proxy of a team. Blocks for some milliseconds at the first that uses the system's authorities.
    ///
    /// # Errors
    /// Its authorities are no certificates.
    pub fn new(team: u128, settings: EgressProxy) -> Result<Self, rustls::Error> {
        let tls = settings.tls.as_ref().map(client_config).transpose()?.map(TlsConnector::from);
        Ok(Self { team, settings, tls })
    }

    /// Connects through the proxy, within some seconds.
    pub(crate) async fn connect(
        &self,
        target: ProxyTarget,
        route: &ProxyRoute<'_>,
    ) -> Result<Transport, ProxyFailure> {
        let connected = tokio::time::timeout(PROXY_TIMEOUT, self.try_connect(target, route)).await;
        connected.unwrap_or(Err(ProxyFailure::TimedOut))
    }

    async fn try_connect(
        &self,
        target: ProxyTarget,
        route: &ProxyRoute<'_>,
    ) -> Result<Transport, ProxyFailure> {
        let settings = &self.settings;
        let addresses = route.dns.lookup(&settings.host).await;
        let address = *addresses.first().ok_or(ProxyFailure::Unresolved)?;
        // A name that leads to a public and a private address may be meant to get past the check.
        let is_fine =
            |address| is_allowed(address, route.allowed) && (route.permits_proxy)(address, &settings.host);
        if !addresses.iter().all(|address| is_fine(*address)) {
            return Err(ProxyFailure::Denied);
        }
        let is_internal = addresses.iter().any(|address| is_inside(*address));
        let target = route.checked(target, is_internal).await?;
        let password = match settings.sealed_password {
            None => None,
            Some(_) => {
                let passwords = route.passwords.ok_or(ProxyFailure::Password)?;
                Some(passwords.password(self.team, settings).ok_or(ProxyFailure::Password)?)
            }
        };
        let endpoint = SocketAddr::new(address, settings.port);
        let stream = TcpStream::connect(endpoint).await.map_err(ProxyFailure::Connect)?;
        stream.set_nodelay(true).map_err(ProxyFailure::Connect)?;
        let user = settings.username.as_deref().zip(password.as_ref().map(|password| password.as_str()));
        let Some(connector) = &self.tls else {
            return Ok(Transport::Tcp(ask(stream, target, user).await?));
        };
        let named = settings.tls.as_ref().and_then(|tls| tls.server_name.as_ref()).unwrap_or(&settings.host);
        let name = ServerName::try_from(named.clone())
            .map_err(|error| ProxyFailure::Tls(io::Error::other(error)))?;
        let stream = connector.connect(name, stream).await.map_err(ProxyFailure::Tls)?;
        Ok(Transport::Tls(Box::new(ask(stream, target, user).await?)))
    }
}

/// Asks the proxy at the end of a stream to connect to a target.
async fn ask<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: S,
    target: ProxyTarget,
    user: Option<(&str, &str)>,
) -> Result<S, tokio_socks::Error> {
    let target = match target {
        ProxyTarget::Name(name, port) => TargetAddr::Domain(name.into(), port),
        ProxyTarget::Address(address) => TargetAddr::Ip(address),
    };
    let connected = match user {
        None => Socks5Stream::connect_with_socket(stream, target).await?,
        Some((name, password)) => {
            Socks5Stream::connect_with_password_and_socket(stream, target, name, password).await?
        }
    };
    Ok(connected.into_inner())
}

/// What a connection through a proxy needs of the gateway.
pub(crate) struct ProxyRoute<'a> {
    pub(crate) dns: &'a Dns,
    /// Internal networks that a proxy may be in.
    pub(crate) allowed: [&'a [Cidr]; 2],
    pub(crate) passwords: Option<&'a dyn ProxyPasswords>,
    /// Whether the operator's policies permit a connection to a proxy at this address with this host name.
    pub(crate) permits_proxy: &'a (dyn Fn(IpAddr, &str) -> bool + Send + Sync),
    /// Whether sandboxes may connect to an address directly.
    pub(crate) is_reachable: &'a (dyn Fn(IpAddr) -> bool + Send + Sync),
}

impl ProxyRoute<'_> {
    /// Returns what the proxy is asked for. A proxy within the operator's networks must not lead to what sandboxes may not reach there, so
    /// names are resolved here for it, and private addresses refused.
    async fn checked(&self, target: ProxyTarget, is_internal: bool) -> Result<ProxyTarget, ProxyFailure> {
        match target {
            ProxyTarget::Address(address) => {
                let is_fine = (self.is_reachable)(address.ip())
                    || (!is_internal && is_private_network(address.ip()) && !is_host_address(address.ip()));
                if is_fine { Ok(target) } else { Err(ProxyFailure::Destination) }
            }
            ProxyTarget::Name(name, port) if is_internal => {
                let addresses = self.dns.lookup(&name).await;
                let reachable = addresses.into_iter().find(|address| (self.is_reachable)(*address));
                let address = reachable.ok_or(ProxyFailure::Destination)?;
                Ok(ProxyTarget::Address(SocketAddr::new(address, port)))
            }
            ProxyTarget::Name(..) => Ok(target),
        }
    }
}

/// Whether a proxy may have this address.
fn is_allowed(address: IpAddr, allowed: [&[Cidr]; 2]) -> bool {
    let in_allowed = |address| allowed.iter().any(|list| list.iter().any(|cidr| cidr.contains(address)));
    in_allowed(address.to_canonical()) || !is_inside(address)
}

/// Whether the address is the host's own or of a network that is not the internet.
fn is_inside(address: IpAddr) -> bool {
    is_never_public(address) || is_host_address(address)
}

/// Whether the address is of a private network, which a proxy of the user's may have behind it. Not those that are the proxy itself or its
/// cloud's metadata: loopback, link-local.
pub(crate) fn is_private_network(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1])),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Returns the name in the form that a proxy is given, if it is a host name.
pub(crate) fn name_for_proxy(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    egress_rules::is_host_name(&name).then_some(name)
}

fn client_config(tls: &ProxyTls) -> Result<Arc<ClientConfig>, rustls::Error> {
    static SYSTEM: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(tls_roots::client_config()));
    match &tls.ca_cert {
        None => Ok(Arc::clone(&SYSTEM)),
        Some(pem) => tls_roots::client_config_of(pem).map(Arc::new),
    }
}

/// Checks the addresses of proxies when they are set.
#[derive(Debug)]
pub struct ProxyHosts {
    dns: Dns,
    allowed: Vec<Cidr>,
}

impl ProxyHosts {
    /// `allowed` are internal networks that proxies may be in.
    #[must_use]
    pub fn new(resolvers: Resolvers, allowed: Vec<Cidr>) -> Self {
        Self { dns: Dns::new(resolvers, DnsTotal::default()), allowed }
    }

    /// Checks that a proxy's name has addresses, and that it may have all of them.
    ///
    /// # Errors
    /// The reason, as the wire contract has it.
    pub async fn check(&self, proxy: &EgressProxy) -> Result<(), String> {
        let host = &proxy.host;
        let addresses = tokio::time::timeout(PROXY_TIMEOUT, self.dns.lookup(host)).await.unwrap_or_default();
        if addresses.is_empty() {
            return Err(format!("resolve egress proxy host \"{host}\": no address found"));
        }
        match addresses.into_iter().find(|address| !is_allowed(*address, [&self.allowed, &[]])) {
            None => Ok(()),
            Some(address) => Err(format!(
                "egress proxy endpoint resolves to an internal / denied IP range: {host} resolves to {address}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn proxies_have_public_addresses_or_those_that_the_operator_names() {
        let own: Vec<Cidr> = vec!["10.9.0.0/16".parse().unwrap()];
        for address in ["1.1.1.1", "2606:4700::1111", "10.9.1.1", "::ffff:10.9.1.1"] {
            assert!(is_allowed(ip(address), [&[], &own]), "{address}");
        }
        for address in [
            "10.8.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fd00::1",
            "::ffff:10.8.1.1",
        ] {
            assert!(!is_allowed(ip(address), [&own, &[]]), "{address}");
        }
    }

    #[tokio::test]
    async fn private_networks_are_reached_through_public_proxies_alone() {
        let dns = Dns::new(Resolvers::new(Vec::new()), DnsTotal::default());
        let is_reachable = |address: IpAddr| !is_never_public(address);
        let route = ProxyRoute {
            dns: &dns,
            allowed: [&[], &[]],
            passwords: None,
            permits_proxy: &|_, _| true,
            is_reachable: &is_reachable,
        };
        let checked = async |text: &str, is_internal| {
            let target = ProxyTarget::Address(SocketAddr::new(ip(text), 80));
            route.checked(target, is_internal).await.is_ok()
        };
        assert!(checked("1.1.1.1", false).await && checked("1.1.1.1", true).await);
        for private in ["10.1.1.1", "100.64.1.1", "192.168.1.1", "fd00::1", "::ffff:10.1.1.1"] {
            assert!(checked(private, false).await && !checked(private, true).await, "{private}");
        }
        for never in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "fe80::1", "::1", "224.0.0.1"] {
            assert!(!checked(never, false).await && !checked(never, true).await, "{never}");
        }
        let name = ProxyTarget::Name("a.example".to_owned(), 443);
        assert_eq!(route.checked(name.clone(), false).await.unwrap(), name);
        // What a proxy among the operator's own machines resolves, it would resolve to their addresses.
        assert!(route.checked(name, true).await.is_err());
        let literal = ProxyTarget::Name("10.1.1.1".to_owned(), 80);
        assert!(route.checked(literal, true).await.is_err());
    }

    #[test]
    fn proxies_are_given_host_names_and_no_addresses() {
        assert_eq!(name_for_proxy("A.Example.").as_deref(), Some("a.example"));
        for text in ["10.0.0.1", "[::1]", "::1", "a b", "", "a_b.example", "127.1"] {
            assert_eq!(name_for_proxy(text), None, "{text}");
        }
    }
}
