//! Decides what becomes of a connection, by its address, and by its name where that matters.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egress_rules::Rules;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{GatewayState, is_host_address};
use crate::connection_log::TRAFFIC_USED_UP;
use crate::hairpin::Hairpin;
use crate::intercept::Interceptor;
use crate::policies::Policies;
use crate::proxy::{self, ProxyTarget, SandboxProxy};
use crate::sniff::{self, SniffedName};

/// How long a client may take to send the name of the host that it wants; then only the address counts.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) enum EgressDecision {
    /// Connect to the address, and send what the client has sent so far.
    Dial(SocketAddr, Vec<u8>),
    /// Have the proxy connect, and send what the client has sent so far.
    Proxy(Arc<SandboxProxy>, ProxyTarget, Vec<u8>),
    /// Have the connection to this host served, which has a header rule. Beside it what the client has sent so far.
    Intercept(Arc<dyn Interceptor>, String, Vec<u8>),
    /// Reset the connection, for this reason.
    Refuse(&'static str),
}

impl EgressDecision {
    /// The same decision, once the client has sent these bytes.
    fn after(mut self, sent: Vec<u8>) -> Self {
        if let Self::Dial(_, head) | Self::Proxy(_, _, head) | Self::Intercept(_, _, head) = &mut self {
            *head = sent;
        }
        self
    }
}

/// What becomes of a connection, and the name that its client sent, if it was read.
pub(super) struct Decision {
    pub(super) action: EgressDecision,
    pub(super) host: Option<String>,
}

const INSIDE: EgressDecision = EgressDecision::Refuse("the address is private or the host's own");

/// Decides about a connection to `destination`, for which the client's first bytes are read if its name matters.
pub(super) async fn decide(
    client: &mut TcpStream,
    destination: SocketAddr,
    state: &GatewayState,
) -> Decision {
    if state.traffic.is_used_up() {
        return Decision { action: EgressDecision::Refuse(TRAFFIC_USED_UP), host: None };
    }
    let policies = state.policies();
    let (address, port) = (destination.ip(), destination.port());
    let is_reachable = state.is_reachable(address);
    let hairpin = state.config.hairpin.as_ref().filter(|hairpin| !is_reachable && hairpin.has_port(port));
    // A proxy may have private networks of the user's behind it. Nothing of them is connected to from here.
    let is_reachable = is_reachable
        || (policies.proxy.is_some() && proxy::is_private_network(address) && !is_host_address(address));
    let rules = policies.rules.as_deref().map(|own| &own.rules).filter(|rules| rules.concern_port(port));
    let rules = rules.filter(|_| state.config.interceptor.is_some());
    let is_permitted = policies.permit_address(address);
    let by_address = match is_permitted {
        true if is_reachable => to_address(&policies, destination),
        true => INSIDE,
        false => EgressDecision::Refuse(policies.refusal(address, None)),
    };
    let is_decided = match is_permitted {
        true if is_reachable => rules.is_none() && hairpin.is_none() && !policies.need_names(),
        true => hairpin.is_none(),
        false => policies.operator().denies_address(address),
    };
    if is_decided {
        return Decision { action: by_address, host: None };
    }
    let expects_tls = rules.is_some() || (hairpin.is_some() && port != HTTP);
    let (name, head) = requested_name(client, port, expects_tls).await;
    // An address in place of a name tells no more than the address.
    let host = name.as_ref().map(RequestedName::host).filter(|host| host.parse::<IpAddr>().is_err());
    let host = host.map(str::to_owned);
    let action = match name {
        None => by_address,
        Some(name) => {
            let request = Request { name, destination, is_permitted, is_reachable };
            by_name(&request, &policies, rules, hairpin, state).await
        }
    };
    Decision { action: action.after(head), host }
}

/// A connection whose client has sent the name of the host that it wants.
struct Request {
    name: RequestedName,
    destination: SocketAddr,
    /// Whether the address is permitted without the name.
    is_permitted: bool,
    /// Whether the address may be connected to at all.
    is_reachable: bool,
}

async fn by_name(
    request: &Request,
    policies: &Policies,
    rules: Option<&Rules>,
    hairpin: Option<&Hairpin>,
    state: &GatewayState,
) -> EgressDecision {
    let Request { name, destination, is_permitted, is_reachable } = request;
    let host = name.host();
    if !policies.permit(destination.ip(), host) {
        return EgressDecision::Refuse(policies.refusal(destination.ip(), Some(host)));
    }
    let interceptor = state.config.interceptor.as_ref();
    if let Some(hairpin) = hairpin.filter(|hairpin| hairpin.is_sandbox(host)) {
        return match (name, interceptor) {
            (RequestedName::Http(_), _) => EgressDecision::Dial(hairpin.address, Vec::new()),
            // The server's own certificate may be with a proxy, so the interceptor takes its place.
            (RequestedName::Tls(host), Some(interceptor)) => {
                EgressDecision::Intercept(Arc::clone(interceptor), host.clone(), Vec::new())
            }
            (RequestedName::Tls(_), None) => INSIDE,
        };
    }
    if *is_permitted && !is_reachable {
        return INSIDE;
    }
    let port = destination.port();
    if let (Some(interceptor), Some(rules), RequestedName::Tls(host)) = (interceptor, rules, name) {
        let host = host.strip_suffix('.').unwrap_or(host);
        if rules.find(host, port).is_some() {
            return EgressDecision::Intercept(Arc::clone(interceptor), host.to_owned(), Vec::new());
        }
    }
    let for_proxy = policies.proxy.as_ref().zip(proxy::name_for_proxy(host));
    if let Some((proxy, name)) = for_proxy.filter(|(_, name)| policies.leave_to_proxy(name)) {
        return EgressDecision::Proxy(Arc::clone(proxy), ProxyTarget::Name(name, port), Vec::new());
    }
    if *is_permitted {
        return to_address(policies, *destination);
    }
    // The name is what is permitted, so the name is resolved here: an /etc/hosts entry in the sandbox cannot point it to another address.
    let mut addresses = state.dns.lookup(host).await.into_iter();
    match addresses.find(|ip| state.is_reachable(*ip) && policies.permit(*ip, host)) {
        Some(address) => to_address(policies, SocketAddr::new(address, port)),
        None => EgressDecision::Refuse("the name has no reachable address"),
    }
}

/// Connects to an address that the policies permit: through the proxy if there is one.
fn to_address(policies: &Policies, address: SocketAddr) -> EgressDecision {
    match &policies.proxy {
        Some(proxy) => EgressDecision::Proxy(Arc::clone(proxy), ProxyTarget::Address(address), Vec::new()),
        None => EgressDecision::Dial(address, Vec::new()),
    }
}

/// The port of HTTP.
const HTTP: u16 = 80;

/// The host name in the first bytes of a connection, by the protocol that has it.
enum RequestedName {
    Tls(String),
    Http(String),
}

impl RequestedName {
    fn host(&self) -> &str {
        let (Self::Tls(host) | Self::Http(host)) = self;
        host
    }
}

/// Reads the first bytes from the client, on the two ports where clients send a host name in them, and where TLS is expected. Returns the
/// name, if there is any, and what was read.
///
/// The bytes are taken out of the socket, each once: a client that sends them one by one would have the kernel go through all of them
/// at each look, and the server be busy with nothing else.
async fn requested_name(
    client: &mut TcpStream,
    port: u16,
    expects_tls: bool,
) -> (Option<RequestedName>, Vec<u8>) {
    if ![HTTP, egress_rules::HTTPS].contains(&port) && !expects_tls {
        return (None, Vec::new());
    }
    let has_tls = expects_tls || port != HTTP;
    let mut buffer = vec![0u8; sniff::MAX_SNIFFED + 5];
    let mut length = 0;
    let sniffed = tokio::time::timeout(SNIFF_TIMEOUT, async {
        loop {
            let searched = length;
            // Nothing more when the buffer is full or the client has ended.
            match client.read(&mut buffer[length..]).await.ok()? {
                0 => return None,
                more => length += more,
            }
            let seen = &buffer[..length];
            let is_http = port == HTTP && (!has_tls || !sniff::is_tls(seen));
            let sniffed =
                if is_http { sniff::http_host(seen, searched) } else { sniff::tls_server_name(seen) };
            match sniffed {
                SniffedName::Found(name) if is_http => return Some(RequestedName::Http(name)),
                SniffedName::Found(name) => return Some(RequestedName::Tls(name)),
                SniffedName::Absent => return None,
                SniffedName::NeedMore => {}
            }
        }
    });
    let name = sniffed.await.ok().flatten();
    buffer.truncate(length);
    (name, buffer)
}
