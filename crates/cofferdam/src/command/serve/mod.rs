//! `cofferdam serve`: opens the parts of the server, connects them and runs until a signal.
//! Sandboxes outlive the server process: the next start adopts those that run.
//! Prints `listening on <url>` on standard output once requests are accepted, on a second line the URL with TLS; logs go to standard error.

mod acme;
mod authorities;
mod base_template;
mod disk;
mod egress;
mod heap;
mod listeners;
mod reload;
mod secret_uses;
mod service;
mod settings;
mod telemetry;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::telemetry::Exporter;
use api::RateLimit;
use clap::Args;
use control::{Control, LimitsChange, TeamChange};
use edge::{EdgeConfig, Listener, Protocol};
use egress_log::EgressLog;
use layers::LayerStore;
use net::{Cidr, Destination, Hairpin, OperatorPolicies};
use rustix::fs::{FlockOperation, flock};
use sd_notify::NotifyState;
use store::MeasuredStore;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::listeners::{DnsArguments, ListenArguments};
use self::telemetry::LogLevels;
use super::limits::Limits;
use crate::budgets::Budgets;
use crate::database;
use crate::engines::{self, EngineArguments};
use crate::failure::Failure;
use crate::host;
use crate::paths::{self, DataDir, ServerNote};
use authorities::{SandboxCa, sandbox_ca};

/// Maximum wait for the lock of the data directory: a killed server may not have exited yet.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum time for requests that are under way when the server is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the server.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// File of settings, in TOML: every flag may stand in it under its name, as in `pool = 8`; or `none`. Flags and variables win over it.
    /// [default: /etc/cofferdam/cofferdam.toml, if there is one]
    // Read before the command line is parsed: `configuration`.
    #[arg(long, env = "COFFERDAM_CONFIG", value_name = "FILE|none")]
    config: Option<PathBuf>,
    #[command(flatten)]
    data: DataDir,
    /// PostgreSQL database for the server's records, `postgres://user:password@host/name`. It must exist and be used by no
    /// other server. [default: an SQLite file in the data directory]
    #[arg(long, env = "COFFERDAM_DATABASE", hide_env_values = true, value_name = "URL")]
    database: Option<String>,
    #[command(flatten)]
    listen: ListenArguments,
    /// Domain whose subdomains `<port>-<sandbox id>` lead to sandboxes. Clients are told of it unless it is `localhost`.
    #[arg(long, env = "COFFERDAM_DOMAIN", default_value = "localhost", value_parser = paths::domain)]
    domain: String,
    #[command(flatten)]
    own_dns: DnsArguments,
    /// Address for SSH to sandboxes: `ssh <sandbox id>@host`, with a key of `cofferdam ssh-key add` or an API key as password. [default: none]
    #[arg(long, env = "COFFERDAM_SSH_LISTEN", value_name = "ADDRESS")]
    ssh_listen: Option<SocketAddr>,
    #[command(flatten)]
    engines: EngineArguments,
    /// Directory of template layers; several servers may share one. [default: layers in the data directory]
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// Time from a failed pause at the end of a sandbox's time to the next attempt. After three the sandbox is paused without its
    /// memory, and killed if that fails too.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pause_retry: u64,
    /// How long the frozen processes of a paused sandbox are kept in memory, so that a resume only thaws them. The snapshot
    /// is on disk in any case.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    keep_frozen: u64,
    /// Maximum number of paused sandboxes whose frozen processes are kept.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    keep_frozen_max: usize,
    /// DNS server that queries of sandboxes are forwarded to. May be repeated. [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Vec<SocketAddr>,
    /// Private network that sandboxes may connect to. May be repeated. [default: none]
    #[arg(long, value_name = "CIDR")]
    egress_allow_internal: Vec<Cidr>,
    /// Private network that proxies of sandboxes (`network.egressProxy`) may be in. May be repeated. [default: none]
    #[arg(long, value_name = "CIDR")]
    egress_proxy_allow_internal: Vec<Cidr>,
    /// Network, address or host name (`*.example.com` is all below it) that no sandbox may connect to, whatever its own rules permit. May be
    /// repeated.
    #[arg(long, value_name = "CIDR|NAME")]
    egress_deny: Vec<Destination>,
    /// Network, address or host name that sandboxes may connect to; everything else is denied then. May be repeated. [default: everything]
    #[arg(long, value_name = "CIDR|NAME")]
    egress_allow_only: Vec<Destination>,
    /// Maximum number of connections of one sandbox to hosts at once; further ones wait.
    #[arg(long, default_value_t = 512, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    egress_connections: u32,
    /// Maximum traffic of one sandbox with hosts from its creation or last resume on, both directions together; then its connections are ended.
    /// [default: unlimited]
    #[arg(long, value_name = "MIB")]
    egress_traffic: Option<u64>,
    // Of the default team and of teams that are created from now on.
    #[command(flatten)]
    limits: Limits,
    /// Rate limit of a team's requests, as [METHOD ]PATTERN=COUNT/UNIT[:BURST]: 'POST /v2/sandboxes=10/s:50' or '*=100/s'.
    /// May be repeated; the first rule that matches a request applies.
    #[arg(long, value_name = "RULE")]
    rate_limit: Vec<RateLimit>,
    /// PEM file of certificate authorities that sandboxes and builds trust in addition to their template's, such as that of a
    /// proxy; or `none`. Those that this host's distribution ships are left out. [default: those that this host's administrator added]
    #[arg(long, value_name = "FILE|none", value_parser = sandbox_ca)]
    sandbox_ca: Option<SandboxCa>,
    /// PEM file of certificate authorities that hosts with header rules may have their certificates from, besides those that this host
    /// trusts.
    #[arg(long, value_name = "FILE")]
    egress_ca: Option<PathBuf>,
    /// File of the keys that teams' secrets are encrypted with, 64 hexadecimal digits on each line: the first one encrypts, all decrypt, and
    /// at the start secrets are encrypted anew with the first. Made with one key if there is none. [default: secrets.key in the data
    /// directory]
    #[arg(long, value_name = "FILE")]
    secrets_key_file: Option<PathBuf>,
    /// Mirror of a container image registry: the registry's host name, `=`, and the mirror's `http://` or `https://` URL. May be
    /// repeated.
    #[arg(long, value_name = "HOST=URL", value_parser = settings::registry_mirror)]
    registry_mirror: Vec<(String, oci::Mirror)>,
    /// Container image registry that is contacted without TLS, as image names spell it. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    registry_insecure: Vec<String>,
    /// Private network that container image registries may be in. May be repeated. [default: none]
    #[arg(long, value_name = "CIDR")]
    registry_allow_internal: Vec<Cidr>,
    /// Maximum number of pre-started sandboxes, of all templates in use together, and at most 8 for each build. 0 disables the pool.
    /// Numbers set by `cofferdam pool set` are not limited by it. Was named `--warm`; the former `--pool` is now `--slots`.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pool: usize,
    /// Maximum memory of all pre-started sandboxes together, MiB.
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    pool_memory: u64,
    /// Private network that webhooks may be delivered to. May be repeated. [default: none]
    #[arg(long, value_name = "CIDR")]
    webhook_allow_internal: Vec<Cidr>,
    /// Days that logs, metrics, events and records of ended sandboxes are kept.
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=365))]
    retention_days: u32,
    /// Which log lines are written: a level, or levels of modules as in `info,control=debug`.
    #[arg(long, env = "COFFERDAM_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Write log lines as JSON.
    #[arg(long)]
    log_json: bool,
    /// Maximum number of connections of clients, of connections to servers in sandboxes, and of connections out of sandboxes, each. When all
    /// are taken, those of whoever has most are closed for others. [default: as many as open files and memory allow]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(8..))]
    max_connections: Option<u32>,
    /// Further address on which `/metrics` is served, without a token. On the address of `--listen` it needs the admin token, in
    /// `X-Admin-Token` or `Authorization: Bearer`.
    #[arg(long, env = "COFFERDAM_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// URL of an OpenTelemetry collector that traces are sent to, as OTLP over HTTP: `http://127.0.0.1:4318`. [default: no traces]
    #[arg(long, env = "COFFERDAM_OTLP", value_name = "URL")]
    otlp: Option<String>,
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// A setting is unusable, another server uses the data directory, or a part of the server cannot be opened.
pub(crate) fn run(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _in_runtime = runtime.enter();
    // Dropped at the end, after the last span.
    let (_trace_export, log_levels) = telemetry::start(arguments)?;
    let data_dir = &arguments.data.data_dir;
    fs::create_dir_all(data_dir).map_err(|error| {
        Failure::new(format!("{}: {error}; choose another directory with --data-dir", data_dir.display()))
    })?;
    // The store holds the seed that every sandbox's token is derived from.
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))?;
    let _lock = lock(data_dir)?;
    runtime.block_on(serve(arguments, log_levels))?;
    Ok(ExitCode::SUCCESS)
}

/// Locks the data directory: a second server on it would sweep the first one's sandboxes.
fn lock(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join("lock");
    let file = File::options().create(true).append(true).open(&path)?;
    // In a thread, because flock has no timeout.
    let (sender, locked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(flock(&file, FlockOperation::LockExclusive).map(|()| file));
    });
    locked.recv_timeout(LOCK_TIMEOUT).ok().and_then(Result::ok).ok_or_else(|| {
        Failure::new(format!(
            "another server uses {}; stop it or choose another directory with --data-dir",
            data_dir.display()
        ))
    })
}

async fn serve(arguments: &ServeArguments, log_levels: LogLevels) -> Result<(), Failure> {
    let data = &arguments.data;
    // First, so that no program that the server starts inherits them.
    let sockets = service::sockets()?;
    let exporter = Exporter::install()?;
    engine_host::raise_host_limits()
        .map_err(|error| Failure::new(format!("limit of open files: {error}")))?;
    let budgets = Budgets::of_this_process(arguments.max_connections.map(|max| max as usize));
    let (hairpin, inside) = listeners::open_hairpin(&arguments.listen, &arguments.domain)?.unzip();
    let operator = settings::operator_policies(arguments);
    let control = open_control(arguments, &budgets, hairpin, &operator).await?;
    reload::on_hangup(log_levels, operator)?;
    tokio::spawn(telemetry::fold_histograms(exporter.clone()));
    tokio::spawn(heap::keep_trimmed());
    tokio::spawn(disk::watch(data.data_dir.clone()));
    let metrics = telemetry::metrics_source(exporter, control.clone(), budgets.clone());
    if let Some(address) = arguments.metrics_listen {
        let address = telemetry::listen_for_scrapes(address, metrics.clone()).await?;
        info!(%address, "listening for scrapes of /metrics");
    }
    let mut opened = listeners::open(&arguments.listen, &arguments.domain, data, sockets).await?;
    if let Some(inside) = inside {
        let socket = tokio::net::TcpListener::from_std(inside)?;
        opened.listeners.push(Listener { socket, protocol: Protocol::Inside, has_proxy_header: false });
    }
    listeners::answer_dns(&arguments.own_dns, &arguments.domain, opened.tls).await?;
    let (url, tls_url) = (opened.url, opened.tls.map(|address| format!("https://{address}")));
    let domain = (arguments.domain != "localhost").then(|| match opened.public_port {
        Some(port) => format!("{}:{port}", arguments.domain),
        None => arguments.domain.clone(),
    });
    let api_config = api::ApiConfig {
        admin_token: Some(admin_token(&data.admin_token())?),
        domain: domain.clone(),
        host: host::probe(&data.data_dir),
        rate_limits: arguments.rate_limit.clone(),
        metrics: Some(metrics),
    };
    let api = api::router(control.clone(), api_config);
    let mut edge_config = EdgeConfig {
        domain: arguments.domain.clone(),
        client_connections: budgets.clients,
        sandbox_connections: budgets.to_sandboxes,
        drain: DRAIN_TIMEOUT,
        ..EdgeConfig::default()
    };
    listeners::configure(&arguments.listen, &mut edge_config);
    let stop = stop_signal()?;
    let stopping = CancellationToken::new();
    let ssh = listeners::serve_ssh(arguments.ssh_listen, &control, data, &url, &stopping).await?;
    // Without a certificate here, a proxy may have one, which is not for certain.
    let note = ServerNote {
        url: url.clone(),
        pid: std::process::id(),
        domain: domain.filter(|_| tls_url.is_some()),
    };
    note.write(&data.server_note())?;
    // At once: whoever waits for the first line may then close the pipe.
    let lines: String =
        [Some(&url), tls_url.as_ref()].iter().flatten().map(|url| format!("listening on {url}\n")).collect();
    std::io::stdout().write_all(lines.as_bytes())?;
    std::io::stdout().flush()?;
    info!(%url, tls_url, domain = arguments.domain, data_dir = %data.data_dir.display(), "ready");
    service::tell(&[NotifyState::Ready]);
    service::feed_watchdog();

    let stop = {
        let stopping = stopping.clone();
        async move {
            stop.await;
            stopping.cancel();
        }
    };
    edge::serve(opened.listeners, api, control.clone(), edge_config, stop).await?;
    stopping.cancel();
    if let Some(ssh) = ssh {
        let _ = ssh.await;
    }
    service::tell(&[NotifyState::Stopping]);
    info!("stopping; sandboxes keep running and are adopted by the next start");
    control.shutdown().await;
    let _ = fs::remove_file(data.server_note());
    Ok(())
}

/// Opens layers, engines, the database and the control plane, and registers the `base` template.
async fn open_control(
    arguments: &ServeArguments,
    budgets: &Budgets,
    hairpin: Option<Hairpin>,
    operator: &Arc<OperatorPolicies>,
) -> Result<Arc<Control>, Failure> {
    let data = &arguments.data;
    let layers = LayerStore::open(arguments.layers_dir.as_deref().unwrap_or(&data.layers()))?;
    let store = Arc::new(MeasuredStore::new(database::open(data, arguments.database.as_deref()).await?));
    let secrets = egress::open_secrets(arguments, Arc::<MeasuredStore>::clone(&store)).await?;
    let egress = egress::open(arguments, Arc::clone(&secrets))?;
    let mut gateway = settings::gateway(arguments, budgets, egress.interceptor, hairpin);
    let egress_log = EgressLog::start(data.egress_logs());
    gateway.operator = Arc::clone(operator);
    gateway.log = Some(Arc::<EgressLog>::clone(&egress_log));
    gateway.proxy_passwords = Some(Arc::<egress::TeamSecrets>::clone(&egress.secrets));
    let engine = engines::open(&arguments.engines, data, &gateway).await?;
    let mut config = settings::control(arguments, &layers, engine.descriptor().isolation)?;
    config.operator_policies = Arc::clone(&gateway.operator);
    config.egress_log = Some(egress_log);
    config.proxy_hosts = Some(Arc::new(settings::proxy_hosts(&gateway)));
    config.identity = settings::issuer(arguments)?.map(Arc::new);
    config.egress_ca = Some(egress.authorities);
    config.secrets = Some(secrets);
    let control = Control::open(store, engine, config).await?;
    egress.secrets.set_control(&control);
    // The options also apply to a default team of an earlier start; other teams are changed by `team update`.
    let limits = LimitsChange::from(&arguments.limits);
    let default_team = control.default_team();
    if limits.apply(default_team.limits) != default_team.limits {
        control.change_team(default_team.id, TeamChange { limits, ..TeamChange::default() }).await?;
    }
    base_template::register(&control, &layers).await?;
    Ok(control)
}

/// Returns the operator's token. The first start creates it, in a file that only root can read.
fn admin_token(path: &Path) -> Result<String, Failure> {
    let mut token = String::new();
    match File::open(path).and_then(|mut file| file.read_to_string(&mut token)) {
        Ok(_) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
        _ => {}
    }
    let fresh = ids::random_hex::<32>();
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(fresh.as_bytes())?;
    Ok(fresh)
}

/// Returns a future that completes at the first SIGTERM or SIGINT from now on.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
