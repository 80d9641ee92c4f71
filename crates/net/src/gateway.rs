//! The gateway: outgoing TCP connections of one sandbox.
//!
//! Accepts connections that the namespace redirects, applies the egress policy, connects from the
//! host to the original destination, and copies bytes. The sandbox's own address never leaves the
//! host. A refused connection is reset at once, so that the client need not wait for a time-out.

mod outbound;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use budget::{Account, Budget, Holder, Use};
use parking_lot::{Mutex, RwLock};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::dns::{Dns, DnsTotal, Resolvers};
use crate::hairpin::Hairpin;
use crate::intercept::{Intercepted, Interceptor};
use crate::listeners::Listeners;
use crate::policy::{Cidr, EgressPolicy, is_never_public};
use crate::proxy::{self, ProxyFailure, ProxyPasswords, ProxyRoute, ProxyTarget, SandboxProxy};
use crate::server_stream::ServerStream;
use crate::sniff::{self, SniffedName};
use crate::{DNS_PORT, EGRESS_PORT};
use outbound::SandboxOutbound;

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to send the name of the host that it wants; then only the address
/// counts.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of connections of one sandbox at once; each costs the server two descriptors.
const MAX_CONNECTIONS: usize = 512;
/// Total of connections of a default configuration.
const DEFAULT_TOTAL: usize = 4096;
/// Stands for the team of sandboxes that have none: pre-started ones, and those of builds.
const NO_TEAM: Holder = Holder(0);
/// How long further failures of a listener are not logged.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Settings of the operator for all sandboxes, and what they share.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The resolvers that DNS queries are forwarded to.
    pub resolvers: Resolvers,
    /// Private networks that sandboxes may reach nevertheless. Empty by default.
    pub internal_allowed: Vec<Cidr>,
    /// Private networks that proxies of sandboxes (`network.egressProxy`) may be in besides. Empty by default.
    pub proxies_allowed: Vec<Cidr>,
    /// Decrypts the passwords of proxies. Without it proxies that want one cannot be used.
    pub proxy_passwords: Option<Arc<dyn ProxyPasswords>>,
    /// The outgoing connections of all sandboxes. When all are taken, those of the team and sandbox with most give way.
    pub connections: Arc<Budget>,
    /// What all sandboxes may ask the resolvers together.
    pub dns_total: DnsTotal,
    /// Serves connections to hosts that have header rules. Without it rules have no effect.
    pub interceptor: Option<Arc<dyn Interceptor>>,
    /// How public hosts of sandboxes are reached. Without it they are not, where they lead to the host's own addresses.
    pub hairpin: Option<Hairpin>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            resolvers: Resolvers::default(),
            internal_allowed: Vec::new(),
            proxies_allowed: Vec::new(),
            proxy_passwords: None,
            connections: Budget::new("outgoing connections", DEFAULT_TOTAL),
            dns_total: DnsTotal::default(),
            interceptor: None,
            hairpin: None,
        }
    }
}

/// The outgoing network of one sandbox. Dropping it closes the listeners and all connections.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<GatewayState>,
    stop: CancellationToken,
    servers: TaskTracker,
}

#[derive(Debug)]
struct GatewayState {
    /// Id of the sandbox.
    sandbox: String,
    policy: RwLock<Arc<EgressPolicy>>,
    config: GatewayConfig,
    /// This sandbox as a holder of connections.
    holder: Holder,
    team: RwLock<Holder>,
    dns: Arc<Dns>,
    /// Cancels the present connections; later ones get a new token.
    cut: Mutex<CancellationToken>,
}

impl Gateway {
    /// Starts serving the listeners of a sandbox on the current runtime.
    ///
    /// # Errors
    /// A socket cannot be registered with the runtime.
    pub fn start(
        sandbox: &str,
        listeners: Listeners,
        policy: EgressPolicy,
        config: GatewayConfig,
    ) -> io::Result<Self> {
        let dns = Arc::new(Dns::new(config.resolvers.clone(), config.dns_total.clone()));
        let state = Arc::new(GatewayState {
            sandbox: sandbox.to_owned(),
            policy: RwLock::new(Arc::new(policy)),
            config,
            holder: next_holder(),
            team: RwLock::new(NO_TEAM),
            dns,
            cut: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let gateway = Self { state, stop, servers: TaskTracker::new() };
        for listener in listeners.tcp {
            let listener = TcpListener::from_std(listener)?;
            let (state, stop) = (gateway.state.clone(), gateway.stop.clone());
            let serve = accept_loop(listener, state, stop);
            gateway.servers.spawn(gateway.stop.clone().run_until_cancelled_owned(serve));
        }
        for socket in listeners.dns {
            let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
            let (state, stop) = (gateway.state.clone(), gateway.stop.clone());
            let serve = async move {
                let policy = || state.policy();
                state.dns.serve_udp(socket, policy, stop).await;
            };
            gateway.servers.spawn(gateway.stop.clone().run_until_cancelled_owned(serve));
        }
        gateway.servers.close();
        Ok(gateway)
    }

    /// Closes the listeners and all connections; returns once the ports are free again.
    pub async fn stop(self) {
        self.stop.cancel();
        self.servers.wait().await;
    }

    /// Resets all present connections. New ones are served as before.
    pub fn cut(&self) {
        let mut cut = self.state.cut.lock();
        std::mem::take(&mut *cut).cancel();
    }

    /// Assigns the team on whose account connections are made from now on.
    pub fn set_team(&self, team: u128) {
        *self.state.team.write() = Holder(team);
    }

    /// Replaces the egress policy for connections that are made from now on.
    pub fn set_policy(&self, policy: EgressPolicy) {
        *self.state.policy.write() = Arc::new(policy);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns a number for a gateway. Teams are random UUIDs, which are never this small.
fn next_holder() -> Holder {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Holder(NEXT.fetch_add(1, Ordering::Relaxed).into())
}

impl GatewayState {
    fn account(&self) -> Account {
        Account { group: *self.team.read(), member: self.holder }
    }

    fn policy(&self) -> Arc<EgressPolicy> {
        self.policy.read().clone()
    }

    /// Whether an address may be connected to at all, whatever the sandbox's policy permits.
    fn is_reachable(&self, address: IpAddr) -> bool {
        if self.config.internal_allowed.iter().any(|cidr| cidr.contains(address.to_canonical())) {
            return true;
        }
        !is_never_public(address) && !is_host_address(address)
    }

    /// Connects to a host through the sandbox's proxy.
    async fn connect_by_proxy(
        &self,
        proxy: &SandboxProxy,
        target: ProxyTarget,
    ) -> Result<ServerStream, ProxyFailure> {
        let route = ProxyRoute {
            dns: &self.dns,
            allowed: [&self.config.internal_allowed, &self.config.proxies_allowed],
            passwords: self.config.proxy_passwords.as_deref(),
            is_reachable: &|address| self.is_reachable(address),
        };
        proxy.connect(target, &route).await
    }
}

/// Whether the address is one of the host's own. Sandboxes may not reach the host's services even
/// on public addresses.
#[must_use]
pub fn is_host_address(address: IpAddr) -> bool {
    // Binding asks the kernel for its present addresses. Only the explicit "not available" counts
    // as false: any other error, such as a lack of descriptors, must not open the host's own
    // addresses.
    match std::net::UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

async fn accept_loop(listener: TcpListener, state: Arc<GatewayState>, stop: CancellationToken) {
    let mut logged: Option<Instant> = None;
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() > LOG_PAUSE) {
                    warn!(%error, "failed to accept a sandbox's connection");
                    logged = Some(Instant::now());
                }
                // Out of descriptors: there is no event for when there are some again.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Meanwhile the others wait in the kernel, at the expense of the sandbox.
        let share = state.config.connections.wait(|| state.account(), Use::Busy, MAX_CONNECTIONS).await;
        let state = state.clone();
        let cut = state.cut.lock().clone();
        let forward = async move {
            let forward = async {
                tokio::select! {
                    result = forward(client, &state, &cut) => result,
                    // Others need the connection more.
                    () = share.revoked() => Err(io::Error::other("closed for other sandboxes")),
                }
            };
            if let Err(error) = forward.await {
                debug!(%error, "outgoing connection ended");
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(forward));
    }
}

async fn forward(
    mut client: TcpStream,
    state: &Arc<GatewayState>,
    cut: &CancellationToken,
) -> io::Result<()> {
    // However this ends early, the client must see a reset, or an interrupted download looks complete.
    reset_on_close(&client)?;
    let destination = original_destination(&client)?;
    if destination.port() == DNS {
        // Every response has its length, so that an end shows.
        sockopt::set_socket_linger(&client, None)?;
        return state.dns.serve_tcp(client, || state.policy()).await;
    }
    let (connected, head) = match decide(&mut client, destination, state).await {
        EgressDecision::Dial(target, head) => {
            let connected = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await;
            let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (connected.map(ServerStream::Tcp), head)
        }
        EgressDecision::Proxy(proxy, target, head) => {
            (state.connect_by_proxy(&proxy, target).await.map_err(io::Error::other), head)
        }
        EgressDecision::Intercept(interceptor, host, head) => {
            // TLS has an end of its own, by which the client tells a complete response.
            sockopt::set_socket_linger(&client, None)?;
            let outbound = Arc::new(SandboxOutbound(Arc::clone(state)));
            let connection = Intercepted { client, head, host, port: destination.port(), outbound };
            return cut.run_until_cancelled(interceptor.intercept(connection)).await.unwrap_or(Ok(()));
        }
        EgressDecision::Refuse(reason) => {
            debug!(%destination, reason, "outgoing connection refused");
            return Ok(());
        }
    };
    let mut server = match connected {
        Ok(server) => server,
        Err(error) => {
            debug!(%destination, %error, "outgoing connection failed");
            return Ok(());
        }
    };
    server.set_reset_on_close(true)?;
    client.set_nodelay(true)?;
    server.set_nodelay()?;
    let copy = async {
        server.write_all(&head).await?;
        stream_copy::copy_bidirectional(&mut client, &mut server).await
    };
    if matches!(cut.run_until_cancelled(copy).await, Some(Ok(()))) {
        sockopt::set_socket_linger(&client, None)?;
        server.set_reset_on_close(false)?;
    }
    Ok(())
}

const DNS: u16 = 53;

/// Makes closing the stream send an RST.
fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(stream, Some(Duration::ZERO))?)
}

/// Returns the destination that the client connected to, before the redirect.
///
/// # Errors
/// The connection was not redirected.
fn original_destination(client: &TcpStream) -> io::Result<SocketAddr> {
    let destination: SocketAddr = if client.local_addr()?.is_ipv4() {
        sockopt::ip_original_dst(client)?.into()
    } else {
        sockopt::ipv6_original_dst(client)?.into()
    };
    // The client connected to our listener directly, so there is no other destination.
    let ours = destination.ip().is_loopback() && [EGRESS_PORT, DNS_PORT].contains(&destination.port());
    if ours { Err(io::Error::other("not a redirected connection")) } else { Ok(destination) }
}

enum EgressDecision {
    /// Connect to the address, and send what the client has sent so far.
    Dial(SocketAddr, Vec<u8>),
    /// Have the proxy connect, and send what the client has sent so far.
    Proxy(Arc<SandboxProxy>, ProxyTarget, Vec<u8>),
    /// Have the connection to this host served, which has a header rule. Beside it what the client has sent so far.
    Intercept(Arc<dyn Interceptor>, String, Vec<u8>),
    Refuse(&'static str),
}

async fn decide(client: &mut TcpStream, destination: SocketAddr, state: &GatewayState) -> EgressDecision {
    const INSIDE: EgressDecision = EgressDecision::Refuse("the address is private or the host's own");
    let policy = state.policy();
    let (address, port) = (destination.ip(), destination.port());
    let (is_permitted, is_reachable) = (policy.permits_address(address), state.is_reachable(address));
    let hairpin = state.config.hairpin.as_ref().filter(|hairpin| !is_reachable && hairpin.has_port(port));
    // A proxy may have private networks of the user's behind it. Nothing of them is connected to from here.
    let is_reachable = is_reachable
        || (policy.proxy.is_some() && proxy::is_private_network(address) && !is_host_address(address));
    if is_permitted && !is_reachable && hairpin.is_none() {
        return INSIDE;
    }
    let rules = policy.rules.as_deref().map(|own| &own.rules).filter(|rules| rules.concern_port(port));
    let interceptor = state.config.interceptor.as_ref();
    let rules = rules.filter(|_| interceptor.is_some());
    if is_permitted && rules.is_none() && hairpin.is_none() && !policy.leaves_names_to_proxy() {
        return to_address(&policy, destination, Vec::new());
    }
    let expects_tls = rules.is_some() || (hairpin.is_some() && port != HTTP);
    let (name, head) = requested_name(client, port, expects_tls).await;
    let Some(name) = name else {
        return match is_permitted {
            true if is_reachable => to_address(&policy, destination, head),
            true => INSIDE,
            false => EgressDecision::Refuse("the address is denied"),
        };
    };
    if !is_permitted && !policy.permits_domain(name.host()) {
        return EgressDecision::Refuse("the name is denied");
    }
    if let Some(hairpin) = hairpin.filter(|hairpin| hairpin.is_sandbox(name.host())) {
        return match (name, interceptor) {
            (RequestedName::Http(_), _) => EgressDecision::Dial(hairpin.address, head),
            // The server's own certificate may be with a proxy, so the interceptor takes its place.
            (RequestedName::Tls(host), Some(interceptor)) => {
                EgressDecision::Intercept(Arc::clone(interceptor), host, head)
            }
            (RequestedName::Tls(_), None) => INSIDE,
        };
    }
    if is_permitted && !is_reachable {
        return INSIDE;
    }
    if let (Some(interceptor), Some(rules), RequestedName::Tls(host)) = (interceptor, rules, &name) {
        let host = host.strip_suffix('.').unwrap_or(host);
        if rules.find(host, port).is_some() {
            return EgressDecision::Intercept(Arc::clone(interceptor), host.to_owned(), head);
        }
    }
    let for_proxy = policy.proxy.as_ref().zip(proxy::name_for_proxy(name.host()));
    if let Some((proxy, name)) = for_proxy.filter(|_| !is_permitted || policy.leaves_names_to_proxy()) {
        return EgressDecision::Proxy(Arc::clone(proxy), ProxyTarget::Name(name, port), head);
    }
    if is_permitted {
        return to_address(&policy, destination, head);
    }
    // The name is what the policy permits, so the name is resolved here: an /etc/hosts entry in the
    // sandbox cannot point it to another address.
    match state.dns.lookup(name.host()).await.into_iter().find(|ip| state.is_reachable(*ip)) {
        Some(address) => to_address(&policy, SocketAddr::new(address, port), head),
        None => EgressDecision::Refuse("the name has no reachable address"),
    }
}

/// Connects to an address that the policy permits: through the proxy if there is one.
fn to_address(policy: &EgressPolicy, address: SocketAddr, head: Vec<u8>) -> EgressDecision {
    match &policy.proxy {
        Some(proxy) => EgressDecision::Proxy(Arc::clone(proxy), ProxyTarget::Address(address), head),
        None => EgressDecision::Dial(address, head),
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

/// Connects to the first address that accepts.
async fn connect_any(targets: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for target in targets {
        match TcpStream::connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
