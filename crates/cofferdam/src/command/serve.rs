//! `cofferdam serve`: puts the parts together and runs until told to stop.
//! Sandboxes outlive it: a restart, wanted or not, adopts those that are running.
//! Prints one line on standard output once it answers; everything else is log on standard error.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use api::RateLimit;
use clap::Args;
use control::{Control, LimitsChange, Registration, TeamChange};
use edge::EdgeConfig;
use engine::Isolation;
use layers::{LayerDigest, LayerStore};
use net::{Cidr, GatewayConfig, Resolvers};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, getrlimit};
use store::BuildConfig;
use template::Recipe;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::limits::Limits;
use crate::database;
use crate::engines::{self, EngineArguments};
use crate::failure::Failure;
use crate::host;
use crate::paths::{DataDir, ServerNote};

/// Settings of the server.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    data: DataDir,
    /// PostgreSQL database for the server's records, `postgres://user:password@host/name`, instead of a file in the data directory.
    /// It must exist and be used by no other server.
    #[arg(long, env = "COFFERDAM_DATABASE", hide_env_values = true, value_name = "URL")]
    database: Option<String>,
    /// Where clients connect, for the API and for sandbox traffic alike. Port 0 takes a free one.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Domain whose `<port>-<id>` subdomains are sandboxes; told to clients when it is not `localhost`.
    #[arg(long, env = "COFFERDAM_DOMAIN", default_value = "localhost")]
    domain: String,
    #[command(flatten)]
    engines: EngineArguments,
    /// Directory of template layers, if not in the data directory. Servers may share one.
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// How long the frozen processes of a paused sandbox are kept, so that resuming it is instant. Its state is on disk
    /// all the same.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    hot_pause: u64,

    /// Paused sandboxes kept so at most.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    most_hot: usize,
    /// Name server that sandboxes' questions go to, instead of the host's own. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Vec<SocketAddr>,
    /// Private network that sandboxes may reach all the same. May be repeated.
    #[arg(long, value_name = "CIDR")]
    egress_allow_internal: Vec<Cidr>,
    // Of teams made from now on, and of the default team.
    #[command(flatten)]
    limits: Limits,
    /// How often a team may call a route, as [METHOD ]PATTERN=COUNT/UNIT[:BURST], such as 'POST /v2/sandboxes=10/s:50'
    /// or '*=100/s'. May be repeated; the first that fits counts.
    #[arg(long, value_name = "RULE")]
    rate_limit: Vec<RateLimit>,
    /// Authorities that sandboxes and builds trust besides their template's, in PEM: of a proxy on the way out, say.
    #[arg(long, value_name = "FILE")]
    sandbox_ca: Option<PathBuf>,
    /// Asked instead of a registry of container images: its host, `=`, and `http://` or `https://` with the mirror's. May be repeated.
    #[arg(long, value_name = "HOST=URL", value_parser = mirror)]
    registry_mirror: Vec<(String, oci::Mirror)>,
    /// Registry that is spoken to without TLS, as images name it. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    registry_insecure: Vec<String>,
    /// Network that is not public and that registries may be in all the same. May be repeated.
    #[arg(long, value_name = "CIDR")]
    registry_allow_internal: Vec<Cidr>,
    /// Sandboxes of templates in use that wait for their creators at most. 0 keeps none.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    warm: usize,
    /// Memory that those may use together, MiB.
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    warm_memory: u64,
    /// Network that is not public and that webhooks may reach all the same. May be repeated.
    #[arg(long, value_name = "CIDR")]
    webhook_allow_internal: Vec<Cidr>,
    /// Days that logs, metrics, events and records of ended sandboxes are kept.
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=365))]
    retention_days: u32,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Runs the server.
pub(crate) fn run(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    start_log(arguments.log_json);
    let data_dir = &arguments.data.data_dir;
    fs::create_dir_all(data_dir).map_err(|error| {
        Failure::new(format!("{}: {error}; choose another directory with --data-dir", data_dir.display()))
    })?;
    // The store holds what every sandbox's token is derived from.
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))?;
    let _lock = lock(data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads certificates, few enough to be handed to a process.
fn authorities(path: &Path) -> Result<String, Failure> {
    const LARGEST: usize = 64 << 10;
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("--sandbox-ca: {}: {error}", path.display())))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") || text.len() > LARGEST {
        return Err(Failure::new(format!(
            "--sandbox-ca: {} is not a PEM file of at most {LARGEST} bytes; name one with just the authorities to add",
            path.display()
        )));
    }
    Ok(text)
}

fn mirror(text: &str) -> Result<(String, oci::Mirror), String> {
    let (host, url) =
        text.split_once('=').ok_or("write it as HOST=URL, such as docker.io=https://mirror.example")?;
    Ok((host.to_owned(), url.parse().map_err(|error: oci::OciError| error.to_string())?))
}

fn start_log(json: bool) {
    let filter = EnvFilter::try_from_env("COFFERDAM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// Two servers on one data directory would take each other's sandboxes for strays.
fn lock(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join("lock");
    let file = File::options().create(true).append(true).open(&path)?;
    // In a thread, because waiting for a lock has no limit of its own. A server killed a moment ago may still be on
    // its way out.
    let (locked, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = locked.send(flock(&file, FlockOperation::LockExclusive).map(|()| file));
    });
    wait.recv_timeout(LOCK_PATIENCE).ok().and_then(Result::ok).ok_or_else(|| {
        Failure::new(format!(
            "another server uses {}; stop it or choose another directory with --data-dir",
            data_dir.display()
        ))
    })
}

/// What takes a second on a processor takes many in emulation on a busy machine.
const EMULATED_START_TIMEOUT: Duration = Duration::from_secs(120);

const LOCK_PATIENCE: Duration = Duration::from_secs(3);

async fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    let data = &arguments.data;
    let layers = LayerStore::open(arguments.layers_dir.as_deref().unwrap_or(&data.layers()))?;
    let engine = engines::open(&arguments.engines, data, &gateway(arguments)).await?;
    let store = database::open(data, arguments.database.as_deref()).await?;
    let layer_paths = layers.clone();
    let layer_path = move |digest: &str| match digest.parse::<LayerDigest>() {
        Ok(digest) => layer_paths.path(&digest),
        Err(_) => PathBuf::from("/nonexistent"),
    };
    let mut config = control::Config::new(layer_path);
    if engine.descriptor().isolation == Isolation::EmulatedVm {
        config.start_timeout = EMULATED_START_TIMEOUT;
    }
    config.hot_pause = Duration::from_secs(arguments.hot_pause);
    config.most_hot = arguments.most_hot;
    config.logs_dir = Some(data.data_dir.join("logs"));
    config.metrics_dir = Some(data.data_dir.join("metrics"));
    config.layers = Some(layers.clone());
    config.owns_layers = arguments.layers_dir.is_none();
    config.trusted_ca = arguments.sandbox_ca.as_deref().map(authorities).transpose()?;
    config.registries = oci::Registries {
        mirrors: arguments.registry_mirror.iter().cloned().collect(),
        insecure: arguments.registry_insecure.iter().cloned().collect(),
        allowed: arguments.registry_allow_internal.clone(),
        ..oci::Registries::default()
    };
    config.most_ready = arguments.warm;
    config.pool_memory = arguments.warm_memory << 20;
    config.pool_file = Some(data.data_dir.join("pool.json"));
    config.builds_dir = Some(data.data_dir.join("builds"));
    config.webhook_internal.clone_from(&arguments.webhook_allow_internal);
    config.retention = Duration::from_secs(u64::from(arguments.retention_days) * 24 * 3600);
    let limits = LimitsChange::from(&arguments.limits);
    config.default_limits = limits.apply(config.default_limits);
    let control = Control::open(store, engine, config).await?;
    // The options hold for the default team whenever it was made; other teams are changed by `team update`.
    let default_team = control.default_team();
    if limits.apply(default_team.limits) != default_team.limits {
        control.change_team(default_team.id, TeamChange { limits, ..TeamChange::default() }).await?;
    }
    register_base(&control, &layers).await?;

    let listener = TcpListener::bind(arguments.listen).await.map_err(|error| {
        Failure::new(format!(
            "{} cannot be listened on: {error}; choose another with --listen",
            arguments.listen
        ))
    })?;
    let address = listener.local_addr()?;
    let url = format!("http://{address}");
    let admin_token = admin_token(&data.admin_token())?;
    let domain = (arguments.domain != "localhost").then(|| arguments.domain.clone());
    let api = api::router(
        control.clone(),
        api::ApiConfig {
            admin_token: Some(admin_token),
            domain,
            host: host::probe(&data.data_dir),
            rate_limits: arguments.rate_limit.clone(),
        },
    );
    ServerNote { url: url.clone(), pid: std::process::id() }.write(&data.server_note())?;
    println!("listening on {url}");
    std::io::stdout().flush()?;
    info!(%url, data = %data.data_dir.display(), "ready");

    // The engine has raised the limit; a quarter for clients leaves room for what they reach and for sandboxes.
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from(descriptors / 4).unwrap_or(usize::MAX).min(65_536);
    let edge = EdgeConfig { domain: arguments.domain.clone(), connections, drain: Duration::from_secs(10) };
    edge::serve(listener, api, control.clone(), edge, told_to_stop()?).await?;
    info!("stopping; sandboxes keep running and are adopted by the next start");
    control.shutdown().await;
    let _ = fs::remove_file(data.server_note());
    Ok(())
}

fn gateway(arguments: &ServeArguments) -> GatewayConfig {
    let resolvers = if arguments.dns.is_empty() {
        Resolvers::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    } else {
        Resolvers::new(arguments.dns.clone())
    };
    GatewayConfig { resolvers, internal_allowed: arguments.egress_allow_internal.clone() }
}

async fn register_base(control: &Control, layers: &LayerStore) -> Result<(), Failure> {
    let recipe = Recipe::base()?;
    let Some(layer) = layers.by_recipe(recipe.fingerprint()) else {
        warn!("template base is not built yet: run `cofferdam template build-base` and start again");
        return Ok(());
    };
    let (defaults, resources) = (recipe.config(), recipe.resources());
    let registration = Registration {
        team: None,
        alias: recipe.name().to_owned(),
        public: true,
        layers: vec![layer.to_string()],
        config: BuildConfig {
            default_user: Some(defaults.user.clone()),
            default_workdir: Some(defaults.workdir.clone()),
            ..BuildConfig::default()
        },
        cpu_count: resources.cpu_count,
        memory_mib: resources.memory_mib,
        disk_mib: resources.disk_mib,
    };
    control.register_template(registration).await?;
    Ok(())
}

/// The operator's token, made at the first start and readable by root alone.
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

fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
