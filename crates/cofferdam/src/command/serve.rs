//! `cofferdam serve`: puts the parts together and runs until told to stop.
//! Sandboxes outlive it: a restart, wanted or not, adopts those that are running.
//! Prints one line on standard output once it answers; everything else is log on standard error.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use control::{Control, Registration};
use edge::EdgeConfig;
use engine::Engine;
use engine_container::{ContainerConfig, ContainerEngine};
use layers::{LayerDigest, LayerStore};
use net::{Cidr, GatewayConfig, Resolvers};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, getrlimit};
use store::{BuildConfig, SqliteStore};
use template::Recipe;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::paths::{self, DataDir, ServerNote};

/// Settings of the server.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    data: DataDir,
    /// Where clients connect, for the API and for sandbox traffic alike. Port 0 takes a free one.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Domain whose `<port>-<id>` subdomains are sandboxes; told to clients when it is not `localhost`.
    #[arg(long, env = "COFFERDAM_DOMAIN", default_value = "localhost")]
    domain: String,
    /// What keeps sandboxes from the host.
    #[arg(long, env = "COFFERDAM_ENGINE", value_enum, default_value_t = EngineChoice::Auto)]
    engine: EngineChoice,
    /// Folder of template layers, if not in the data folder. Servers may share one.
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// Folder for locks and mounts that do not outlive the machine's uptime.
    #[arg(long, default_value = "/run/cofferdam", value_name = "DIR")]
    run_dir: PathBuf,
    /// The envd binary, if not beside this one.
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    /// Sandbox slots (namespaces, control groups) kept ready.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pool: usize,
    /// Name server that sandboxes' questions go to, instead of the host's own. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Vec<SocketAddr>,
    /// Private network that sandboxes may reach all the same. May be repeated.
    #[arg(long, value_name = "CIDR")]
    egress_allow_internal: Vec<Cidr>,
    /// Most sandboxes of one team at once.
    #[arg(long, value_name = "COUNT")]
    max_sandboxes: Option<u32>,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

/// Engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineChoice {
    /// The strongest that works on this machine.
    Auto,
    /// Namespaces on the host's kernel.
    Container,
}

/// Runs the server.
pub(crate) fn run(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    start_log(arguments.log_json);
    let data_dir = &arguments.data.data_dir;
    fs::create_dir_all(data_dir).map_err(|error| {
        Failure::new(format!("{}: {error}; choose another folder with --data-dir", data_dir.display()))
    })?;
    // The store holds what every sandbox's token is derived from.
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))?;
    let _lock = lock(data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
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

/// Two servers on one data folder would take each other's sandboxes for strays.
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
            "another server uses {}; stop it or choose another folder with --data-dir",
            data_dir.display()
        ))
    })
}

const LOCK_PATIENCE: Duration = Duration::from_secs(3);

async fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    let data = &arguments.data;
    let layers = LayerStore::open(arguments.layers_dir.as_deref().unwrap_or(&data.layers()))?;
    let engine = open_engine(arguments)?;
    let store = Arc::new(SqliteStore::open(&data.data_dir.join("cofferdam.db")).await?);
    let layer_paths = layers.clone();
    let layer_path = move |digest: &str| match digest.parse::<LayerDigest>() {
        Ok(digest) => layer_paths.path(&digest),
        Err(_) => PathBuf::from("/nonexistent"),
    };
    let mut config = control::Config::new(layer_path);
    config.logs_dir = Some(data.data_dir.join("logs"));
    if let Some(most) = arguments.max_sandboxes {
        config.default_limits.concurrent_sandboxes = most;
    }
    let control = Control::open(store, engine, config).await?;
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
    let api = api::router(control.clone(), api::ApiConfig { admin_token: Some(admin_token), domain });
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

fn open_engine(arguments: &ServeArguments) -> Result<Arc<dyn Engine>, Failure> {
    let resolvers = if arguments.dns.is_empty() {
        Resolvers::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    } else {
        Resolvers::new(arguments.dns.clone())
    };
    let config = ContainerConfig {
        data_dir: arguments.data.data_dir.clone(),
        run_dir: arguments.run_dir.clone(),
        agent: paths::envd(arguments.envd.as_deref())?,
        pool: arguments.pool,
        gateway: GatewayConfig { resolvers, internal_allowed: arguments.egress_allow_internal.clone() },
    };
    let engine = ContainerEngine::open(&config)?;
    let descriptor = engine.descriptor();
    match arguments.engine {
        EngineChoice::Auto => {
            info!(
                engine = descriptor.name,
                isolation = descriptor.summary,
                "engine: the only one in this version"
            );
        }
        EngineChoice::Container => info!(engine = descriptor.name, isolation = descriptor.summary, "engine"),
    }
    if !descriptor.capabilities.resource_limits {
        warn!(
            "this host lacks a cgroup controller: cpu, memory or process limits of sandboxes are not enforced"
        );
    }
    Ok(Arc::new(engine))
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
