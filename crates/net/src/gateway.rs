//! The gateway: outgoing TCP connections of one sandbox.
//!
//! Accepts connections that the namespace redirects, applies the egress policy, connects from the
//! host to the original destination, and copies bytes. The sandbox's own address never leaves the
//! host. A refused connection is reset at once, so that the client need not wait for a time-out.

mod decide;
mod outbound;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use budget::{Account, Budget, Holder, Use};
use parking_lot::{Mutex, RwLock};
use rustix::net::sockopt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::connection_log::{Connection, ConnectionLog, Meter, Note, Outcome, Traffic};
use crate::dns::{Dns, DnsTotal, Resolvers};
use crate::hairpin::Hairpin;
use crate::intercept::{Intercepted, Interceptor};
use crate::listeners::Listeners;
use crate::operator::OperatorPolicies;
use crate::policies::Policies;
use crate::policy::{Cidr, EgressPolicy, is_never_public};
use crate::proxy::{ProxyFailure, ProxyPasswords, ProxyRoute, ProxyTarget, SandboxProxy};
use crate::server_stream::{ServerStream, Transport};
use crate::{DNS_PORT, EGRESS_PORT};
use decide::{Decision, EgressDecision, decide};
use outbound::SandboxOutbound;

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Default of [`GatewayConfig::max_connections`].
const DEFAULT_CONNECTIONS: usize = 512;
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
    /// What the operator permits, above the policies of sandboxes.
    pub operator: Arc<OperatorPolicies>,
    /// Maximum number of connections of one sandbox at once; each costs the server two descriptors.
    pub max_connections: usize,
    /// Maximum bytes of all connections of one run of a sandbox ([`Gateway::set_team`]), both directions together. None is no limit.
    pub max_bytes: Option<u64>,
    /// Told of each connection.
    pub log: Option<Arc<dyn ConnectionLog>>,
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
            operator: Arc::default(),
            max_connections: DEFAULT_CONNECTIONS,
            max_bytes: None,
            log: None,
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
    traffic: Arc<Traffic>,
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
        let traffic = Arc::new(Traffic::new(config.max_bytes));
        let state = Arc::new(GatewayState {
            sandbox: sandbox.to_owned(),
            policy: RwLock::new(Arc::new(policy)),
            traffic,
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
                state.dns.serve_udp(socket, || state.policies(), stop).await;
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

    /// Assigns the team on whose account connections are made from now on, at the begin of a run: its traffic is counted from here.
    pub fn set_team(&self, team: u128) {
        self.state.traffic.restart();
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

    fn policies(&self) -> Policies {
        let team = self.team.read().0;
        Policies::new(self.policy.read().clone(), self.config.operator.of(team))
    }

    /// Returns the note of a connection that is about to be made, or refused.
    fn note(&self, host: Option<String>, address: Option<IpAddr>, port: u16) -> Note {
        let connection = Connection {
            sandbox: self.sandbox.clone(),
            team: self.team.read().0,
            host,
            address,
            port,
            outcome: Outcome::Failed("ended before it was connected".into()),
            sent: 0,
            received: 0,
        };
        Note::new(self.config.log.clone(), connection)
    }

    /// Makes a connection a host's, whose bytes are counted.
    fn metered(&self, transport: Transport, mut note: Note, address: Option<IpAddr>) -> ServerStream {
        note.connected(address);
        ServerStream::new(transport, Meter::new(note, Arc::clone(&self.traffic)))
    }

    /// Whether an address may be connected to at all, whatever the policies permit.
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
    ) -> Result<Transport, ProxyFailure> {
        let policies = self.policies();
        let operator = policies.operator();
        let route = ProxyRoute {
            dns: &self.dns,
            allowed: [&self.config.internal_allowed, &self.config.proxies_allowed],
            passwords: self.config.proxy_passwords.as_deref(),
            permits_proxy: &|address, host| operator.permits(address, host),
            is_reachable: &|address| self.is_reachable(address) && !operator.denies_address(address),
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
        let share =
            state.config.connections.wait(|| state.account(), Use::Busy, state.config.max_connections).await;
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
        return state.dns.serve_tcp(client, || state.policies()).await;
    }
    let Decision { action, host } = decide(&mut client, destination, state).await;
    let port = destination.port();
    let mut note = state.note(host, Some(destination.ip()), port);
    let (connected, address, head) = match action {
        EgressDecision::Dial(target, head) => {
            let connected = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await;
            let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (connected.map(Transport::Tcp), Some(target.ip()), head)
        }
        EgressDecision::Proxy(proxy, target, head) => {
            let address = target.address();
            (state.connect_by_proxy(&proxy, target).await.map_err(io::Error::other), address, head)
        }
        EgressDecision::Intercept(interceptor, host, head) => {
            // The connections that are made for it are told instead.
            note.discard();
            // TLS has an end of its own, by which the client tells a complete response.
            sockopt::set_socket_linger(&client, None)?;
            let outbound = Arc::new(SandboxOutbound(Arc::clone(state)));
            let connection = Intercepted { client, head, host, port, outbound };
            return cut.run_until_cancelled(interceptor.intercept(connection)).await.unwrap_or(Ok(()));
        }
        EgressDecision::Refuse(reason) => {
            debug!(%destination, reason, "outgoing connection refused");
            note.refused(reason);
            return Ok(());
        }
    };
    let mut server = match connected {
        Ok(transport) => state.metered(transport, note, address),
        Err(error) => {
            debug!(%destination, %error, "outgoing connection failed");
            note.failed(&error);
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
