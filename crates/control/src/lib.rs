//! The rules of the control plane, without HTTP servers and system calls: it knows a store and an engine by their traits.
//! [`Control`] holds the components and the rules that concern several of them: sandboxes (`sandboxes/`), the pool (`pool/`), teams,
//! keys and users, metrics. Components of their own are the crates `catalog` (templates), `builds`, `events`, `limits` and `logs`.
//! `api` serves it by REST, `edge` proxies traffic to the ports that it dials.
#![forbid(unsafe_code)]

mod authentication;
mod build_context;
mod config;
mod counts;
mod envd;
mod error;
mod keys;
mod metrics;
mod node;
mod paging;
mod pool;
mod sandboxes;
mod ssh_keys;
mod team_egress;
mod teams;
mod templates;
#[cfg(feature = "testing")]
pub mod testing;
mod tokens;
mod usage;
mod users;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use builds::{Builds, BuildsConfig};
use catalog::Catalog;
use engine::{Descriptor, Engine};
use events::{Events, WebhooksConfig};
use ids::TeamId;
use limits::TeamQuota;
use logs::LogStore;
use store::{Store, StoreError, Team};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use build_context::ControlBuildContext;
use sandboxes::{InFlightCreates, Launcher, Registry, SnapshotCleaner};

pub use authentication::Authentication;
pub use config::{Config, LayerPath};
pub use error::{AuthError, ControlError};
pub use keys::{KEY_PREFIX, NewKey};
pub use metrics::{Sample, TeamMetric, TeamSample};
pub use node::{NodeReport, NodeStatus};
pub use paging::MAX_PAGE;
pub use pool::PoolReport;
pub use sandboxes::{
    Access, CreateRequest, EndReason, ForkRequest, IdempotencyKey, ListQuery, NetworkUpdate, Page,
    PauseRequest, RunningSandbox, SandboxInfo, SnapshotPage, SnapshotQuery, SnapshotSummary, WakeableSandbox,
    egress_policy,
};
pub use ssh_keys::SshKeys;
pub use team_egress::EgressChange;
pub use teams::{KillCount, LimitsChange, NewTeam, TeamChange};
pub use templates::Registration;
pub use tokens::same_secret;
pub use users::{NewToken, TOKEN_PREFIX};
pub use volumes::{MountRequest, TokenRefusal, Volumes};

/// Name of the seed among the server's secrets.
const SEED: &str = "sandbox-token-seed";
/// Time between two removals of old records and files.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);

/// The control plane.
pub struct Control {
    store: Arc<dyn Store>,
    engine: Arc<dyn Engine>,
    config: Arc<Config>,
    tokens: Arc<tokens::Tokens>,
    accounts: keys::Accounts,
    /// Held while a team is changed, from the look-up to the write.
    changing_teams: tokio::sync::Mutex<()>,
    catalog: Arc<Catalog>,
    builds: Arc<Builds>,
    events: Arc<Events>,
    volumes: Arc<Volumes>,
    ssh_keys: SshKeys,
    metrics: metrics::Metrics,
    /// Logs of sandboxes, if they are kept.
    logs: Option<Arc<LogStore>>,
    node: node::Node,
    usage: usage::Usage,
    pool: pool::Pool,
    launcher: Arc<Launcher>,
    registry: Arc<Registry>,
    snapshots: Arc<SnapshotCleaner>,
    /// Running sandboxes of each team.
    quota: Arc<TeamQuota>,
    in_flight_creates: Arc<InFlightCreates>,
    /// Notified when frozen processes of a paused sandbox are kept.
    frozen_added: tokio::sync::Notify,
    /// Cancelled when the server shuts down: timers stop, sandboxes live on.
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    /// Opens the control plane: reads the store, creates the first team if there is none, and takes over the sandboxes of an earlier
    /// server process.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn open(
        store: Arc<dyn Store>,
        engine: Arc<dyn Engine>,
        config: Config,
    ) -> Result<Arc<Self>, StoreError> {
        let config = Arc::new(config);
        let tokens = Arc::new(open_tokens(&*store).await?);
        create_first_team(&*store, &config).await?;
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        let catalog = Arc::new(Catalog::open(Arc::clone(&store)).await?);
        let registry = Arc::<Registry>::default();
        let volumes = Volumes::open(Arc::clone(&store), config.volumes.clone(), Arc::clone(&tokens)).await?;
        let volumes = Arc::new(volumes);
        let ssh_keys = SshKeys::open(Arc::clone(&store)).await?;
        let launcher = Launcher::new(
            Arc::clone(&engine),
            Arc::clone(&config),
            Arc::clone(&tokens),
            Arc::clone(&volumes),
            tasks.clone(),
        );
        let snapshots = Arc::new(SnapshotCleaner {
            engine: Arc::clone(&engine),
            catalog: Arc::clone(&catalog),
            registry: Arc::clone(&registry),
        });
        let builds = Builds::new(
            Arc::new(ControlBuildContext {
                launcher: Arc::clone(&launcher),
                snapshots: Arc::clone(&snapshots),
            }),
            Arc::clone(&store),
            Arc::clone(&catalog),
            builds_config(&config),
            tasks.clone(),
            closing.clone(),
        );
        let webhooks = WebhooksConfig {
            allowed_networks: config.webhook_internal.clone(),
            timeout: config.webhook_timeout,
            retry: config.webhook_retry,
        };
        let events = Events::open(Arc::clone(&store), webhooks, tasks.clone(), closing.clone()).await?;
        let control = Arc::new(Self {
            volumes,
            ssh_keys,
            accounts: keys::Accounts::new(Arc::clone(&config.operator_policies)),
            changing_teams: tokio::sync::Mutex::default(),
            metrics: metrics::Metrics::new(config.metrics_dir.clone()),
            logs: config.logs_dir.clone().map(|root| Arc::new(LogStore::new(root))),
            node: node::Node::default(),
            usage: usage::Usage::default(),
            pool: pool::Pool::open(config.pool_file.as_deref()),
            quota: Arc::default(),
            in_flight_creates: Arc::default(),
            frozen_added: tokio::sync::Notify::new(),
            store,
            engine,
            config,
            tokens,
            catalog,
            builds,
            events,
            launcher,
            registry,
            snapshots,
            closing,
            tasks,
        });
        control.accounts.load(control.store.teams().await?, control.store.keys().await?);
        control.recover().await?;
        control.builds.recover().await;
        control.spawn_background_tasks();
        Ok(control)
    }

    fn spawn_background_tasks(self: &Arc<Self>) {
        self.spawn_until_closing(|control| async move {
            control.usage.keep_flushing(&*control.store, control.catalog()).await;
        });
        self.spawn_until_closing(|control| async move { control.prepare_default_builds().await });
        self.spawn_until_closing(|control| async move { control.keep_metrics().await });
        self.spawn_until_closing(|control| async move { control.remove_old().await });
        self.spawn_until_closing(|control| async move { control.evict_frozen().await });
        // Not until closing only: a start that has begun is finished.
        let control = Arc::clone(self);
        self.tasks.spawn(async move { control.keep_pool().await });
    }

    /// Returns the templates.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns the template builds.
    #[must_use]
    pub fn builds(&self) -> &Arc<Builds> {
        &self.builds
    }

    /// Returns the secrets of teams, if this server has any.
    #[must_use]
    pub fn secrets(&self) -> Option<&secrets::Secrets> {
        self.config.secrets.as_deref()
    }

    /// Returns the events and webhooks.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Returns the public keys of SSH clients.
    #[must_use]
    pub fn ssh_keys(&self) -> &SshKeys {
        &self.ssh_keys
    }

    /// Returns the volumes.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Returns the descriptors of all engines, the default one first.
    #[must_use]
    pub fn engines(&self) -> Vec<&Descriptor> {
        self.engine.descriptors()
    }

    /// Returns the descriptor of the default engine.
    #[must_use]
    pub fn engine(&self) -> &Descriptor {
        self.engine.descriptor()
    }

    /// Returns the number of running sandboxes.
    #[must_use]
    pub fn running_count(&self) -> usize {
        self.registry.running_count()
    }

    /// Stops timers and waits for starts and ends in progress. Sandboxes live on and are found by the next [`Control::open`].
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.empty_pool().await;
        self.usage.flush(&*self.store, self.catalog()).await;
        self.metrics.flush().await;
        self.engine.shutdown().await;
        self.store.close().await;
    }

    /// Removes old records and files, now and every hour.
    async fn remove_old(&self) {
        let retention = self.config.retention;
        loop {
            let before = OffsetDateTime::now_utc() - retention;
            match self.store.prune(before).await {
                Ok(0) => {}
                Ok(removed) => tracing::debug!(removed, "removed records of ended sandboxes"),
                Err(error) => tracing::warn!(%error, "failed to remove old records"),
            }
            self.events.forget(before).await;
            if let Some(logs) = self.logs.clone() {
                let _ = tokio::task::spawn_blocking(move || logs.forget(retention)).await;
            }
            if let Some(log) = self.config.egress_log.clone() {
                let _ = tokio::task::spawn_blocking(move || log.forget(retention)).await;
            }
            self.builds.remove_unused().await;
            if let Some(series) = self.metrics.store() {
                let _ = tokio::task::spawn_blocking(move || series.forget(retention)).await;
            }
            tokio::time::sleep(CLEANUP_INTERVAL).await;
        }
    }

    /// Runs a task that is stopped when the server shuts down.
    fn spawn_until_closing<F, Fut>(self: &Arc<Self>, work: F)
    where
        F: FnOnce(Arc<Self>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let work = work(Arc::clone(self));
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = work => {}
            }
        });
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Returns the tokens of this server's seed, which is created at the first start.
async fn open_tokens(store: &dyn Store) -> Result<tokens::Tokens, StoreError> {
    let mut fresh = [0u8; tokens::SEED_LEN];
    getrandom::fill(&mut fresh).expect("the kernel's random source answers on every supported system");
    Ok(tokens::Tokens::new(store.secret(SEED, &fresh).await?))
}

/// Creates the first team if there is none.
async fn create_first_team(store: &dyn Store, config: &Config) -> Result<(), StoreError> {
    if !store.teams().await?.is_empty() {
        return Ok(());
    }
    let team = Team {
        id: TeamId::generate(),
        name: "Default".to_owned(),
        slug: "default".to_owned(),
        limits: config.default_limits,
        egress: store::TeamEgress::default(),
        standing: store::Standing::Good,
        created_at: OffsetDateTime::now_utc(),
    };
    store.put_team(&team).await
}

fn builds_config(config: &Config) -> BuildsConfig {
    BuildsConfig {
        dir: config.builds_dir.clone(),
        layers: config.layers.clone(),
        owns_layers: config.owns_layers,
        registries: config.registries.clone(),
        trusted_ca: config.trusted_ca.clone(),
        envd_version: envd_api::VERSION,
        retention: config.retention,
    }
}

/// Sleeps until a time, or for ever if there is none.
async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
