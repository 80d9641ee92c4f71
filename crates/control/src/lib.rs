//! The control plane's rules: sandboxes, templates, teams, keys, timers.
//! It knows a store and an engine by their traits; it knows no HTTP server and makes no system calls.
//! `api` puts REST on it, `edge` takes traffic to the ports it can dial.
#![forbid(unsafe_code)]

mod builds;
mod config;
mod counts;
mod envd;
mod error;
mod events;
mod keys;
mod limits;
mod logs;
mod metrics;
mod node;
mod paging;
mod pool;
mod reference;
mod resources;
mod sandboxes;
mod teams;
mod templates;
#[cfg(feature = "testing")]
pub mod testing;
mod tokens;
mod usage;
mod users;

use std::sync::Arc;

use engine::{Descriptor, Engine};
use ids::TeamId;
use store::{Store, StoreError, Team};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use builds::{
    ArchiveFile, BuildReport, BuildRules, BuildSource, BuildSpec, BuildTarget, DockerfilePlan, FilesLink,
    NewBuild, RegistryAuth, Requested, TagInfo, TagPage, TemplateArchive, UploadAddress, UploadError,
    UploadRange, UploadState,
};
pub use config::{Config, LayerPath};
pub use error::{AuthError, ControlError};
pub use events::{MAX_EVENTS, NewWebhook, WebhookChange, event_label};
pub use keys::{KEY_PREFIX, NewKey};
pub use logs::{LogLevel, LogLine, LogQuery};
pub use metrics::{Sample, TeamMetric, TeamSample};
pub use node::{NodeReport, NodeStatus};
pub use paging::MAX_PAGE;
pub use pool::PoolReport;
pub use reference::{DEFAULT_TAG, TemplateRef};
pub use resources::{BuildPlace, check_template_size};
pub use sandboxes::{
    Access, CreateRequest, EndReason, ForkRequest, IdempotencyKey, ListQuery, Live, NetworkUpdate, Page,
    PauseRequest, SandboxInfo, SnapshotEntry, SnapshotPage, SnapshotQuery, Waking, egress_policy,
};
pub use teams::{KillCount, LimitsChange, NewTeam, TeamChange};
pub use templates::{Entry, Registration};
pub use tokens::same_secret;
pub use users::{NewToken, TOKEN_PREFIX};

/// Name of the seed among the server's secrets.
const SEED: &str = "sandbox-token-seed";
/// How often old records are dropped.
const FORGET_EVERY: std::time::Duration = std::time::Duration::from_secs(3600);

/// The control plane.
pub struct Control {
    store: Arc<dyn Store>,
    engine: Arc<dyn Engine>,
    config: Config,
    tokens: tokens::Tokens,
    accounts: keys::Accounts,
    catalog: templates::Catalog,
    /// Held while a template, team or webhook is changed: look-up and write belong together.
    registering: tokio::sync::Mutex<()>,
    table: sandboxes::registry::Table,
    places: Arc<limits::Places>,
    /// Places for template builds.
    builds: Arc<limits::Places>,
    /// Template builds in hand.
    jobs: builds::Jobs,
    uploads: builds::Uploads,
    starts: limits::StartQueue,
    in_flight: Arc<sandboxes::idempotency::InFlight>,
    usage: usage::Usage,
    /// Told when a paused sandbox is kept in memory.
    cached: tokio::sync::Notify,
    /// Logs of sandboxes, where they are kept.
    logs: Option<Arc<logs::Book>>,
    pool: pool::Pool,
    metrics: metrics::Metrics,
    hooks: events::Hooks,
    node: node::Node,
    /// Set when the server goes down: timers stop, sandboxes live on.
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    /// Opens the control plane: loads what is remembered, makes the first team if there is none, and takes over the
    /// sandboxes of an earlier run.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn open(
        store: Arc<dyn Store>,
        engine: Arc<dyn Engine>,
        config: Config,
    ) -> Result<Arc<Self>, StoreError> {
        let mut fresh = [0u8; tokens::SEED_LEN];
        getrandom::fill(&mut fresh).expect("the kernel's random source answers on every supported system");
        let seed = store.secret(SEED, &fresh).await?;
        if store.teams().await?.is_empty() {
            let team = Team {
                id: TeamId::generate(),
                name: "Default".to_owned(),
                slug: "default".to_owned(),
                limits: config.default_limits,
                standing: store::Standing::Good,
                created_at: OffsetDateTime::now_utc(),
            };
            store.put_team(&team).await?;
        }
        let control = Arc::new(Self {
            tokens: tokens::Tokens::new(seed),
            accounts: keys::Accounts::default(),
            catalog: templates::Catalog::default(),
            registering: tokio::sync::Mutex::default(),
            table: sandboxes::registry::Table::default(),
            places: Arc::default(),
            builds: Arc::default(),
            jobs: builds::Jobs::default(),
            uploads: builds::Uploads::default(),
            starts: limits::StartQueue::new(config.parallel_starts, config.start_queue),
            in_flight: Arc::default(),
            usage: usage::Usage::default(),
            cached: tokio::sync::Notify::new(),
            logs: config.logs_dir.clone().map(|root| Arc::new(logs::Book::new(root))),
            metrics: metrics::Metrics::new(config.metrics_dir.clone()),
            node: node::Node::default(),
            pool: pool::Pool::open(config.pool_file.as_deref()),
            hooks: events::Hooks::new(config.webhook_internal.clone(), config.webhook_timeout),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            store,
            engine,
            config,
        });
        control.accounts.load(control.store.teams().await?, control.store.keys().await?);
        control.catalog.load(&*control.store).await?;
        control.load_webhooks().await?;
        control.recover().await?;
        control.recover_builds().await?;
        control
            .spawn_until_closing(|control| async move { control.usage.keep_flushing(&*control.store).await });
        control.spawn_until_closing(|control| async move { control.prepare_all().await });
        control.spawn_until_closing(|control| async move { control.keep_metrics().await });
        control.spawn_until_closing(|control| async move { control.keep_forgetting().await });
        control.spawn_until_closing(|control| async move { control.keep_evicting().await });
        let keeper = Arc::clone(&control);
        control.tasks.spawn(async move { keeper.keep_pool().await });
        Ok(control)
    }

    /// Every engine that is run here, the one that runs what names none first.
    #[must_use]
    pub fn engines(&self) -> Vec<&Descriptor> {
        self.engine.descriptors()
    }

    /// What the engine with this name is and promises, or the one that runs what names none.
    pub(crate) fn engine_named(&self, name: Option<&str>) -> &Descriptor {
        let found = self.engines().into_iter().find(|engine| Some(engine.name) == name);
        found.unwrap_or_else(|| self.engine())
    }

    /// What the engine is and promises.
    #[must_use]
    pub fn engine(&self) -> &Descriptor {
        self.engine.descriptor()
    }

    /// How many sandboxes are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.table.running()
    }

    /// Stops timers and lets starts and ends that are under way finish. Sandboxes live on and are found again by the
    /// next [`Control::open`].
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.empty_pool().await;
        self.usage.flush(&*self.store).await;
        self.metrics.flush().await;
        self.engine.shutdown().await;
        self.store.close().await;
    }

    /// Drops records of sandboxes that ended long ago, now and every hour.
    async fn keep_forgetting(&self) {
        loop {
            let before = OffsetDateTime::now_utc() - self.config.retention;
            match self.store.prune(before).await {
                Ok(0) => {}
                Ok(pruned) => tracing::debug!(pruned, "forgot sandboxes that ended long ago"),
                Err(error) => tracing::warn!(%error, "old records could not be removed"),
            }
            self.forget_events(before).await;
            if let Some(book) = self.logs.clone() {
                let retention = self.config.retention;
                let _ = tokio::task::spawn_blocking(move || book.forget(retention)).await;
            }
            self.forget_builds().await;
            if let Some(shelf) = self.metrics.shelf() {
                let retention = self.config.retention;
                let _ = tokio::task::spawn_blocking(move || shelf.forget(retention)).await;
            }
            tokio::time::sleep(FORGET_EVERY).await;
        }
    }

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
