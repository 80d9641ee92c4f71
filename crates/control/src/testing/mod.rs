//! Fixtures for tests of this crate and of those above it: a control plane on an engine of loopback sockets, with a real database and
//! without privileges. Only compiled with the feature `testing`.

mod engine;
mod guest;

use std::path::PathBuf;
use std::sync::Arc;

use ids::{SandboxId, TemplateId};
use store::{SqliteStore, Store, Team};

pub use self::engine::{APP_PORT, TestEngine, TestSandbox};
use crate::{Access, Config, Control, ControlError, CreateRequest, Registration};

/// A control plane with a template `base` and a team.
pub struct Fixture {
    /// The control plane.
    pub control: Arc<Control>,
    /// Its engine.
    pub engine: Arc<TestEngine>,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// The default team.
    pub team: Arc<Team>,
    /// A key of that team.
    pub key: String,
    /// The template `base`.
    pub template: TemplateId,
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A fixture with the default settings.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A fixture with changed settings.
    ///
    /// # Panics
    /// When it cannot be set up.
    pub async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = SqliteStore::open(&dir.path().join("state.db")).await.expect("a fresh database");
        let store: Arc<dyn Store> = Arc::new(store);
        let engine = TestEngine::new();
        let mut config = config();
        configure(&mut config);
        let control =
            Control::open(Arc::clone(&store), engine.clone(), config).await.expect("a control plane");
        let (template, _) = control.register_template(registration("base")).await.expect("a template");
        let team = control.default_team();
        let key = control.create_key(team.id, "test").await.expect("a key").secret;
        Self { control, engine, store, team, key, template, dir }
    }

    /// Opens a second control plane on the same engine and files, as after a crash of the first.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn reopen(&self) -> Arc<Control> {
        self.reopen_with(|_| {}).await
    }

    /// As [`Fixture::reopen`], with changed settings.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn reopen_with(&self, configure: impl FnOnce(&mut Config)) -> Arc<Control> {
        let store = SqliteStore::open(&self.dir.path().join("state.db")).await.expect("the database again");
        let mut config = config();
        configure(&mut config);
        Control::open(Arc::new(store), self.engine.clone(), config).await.expect("a control plane")
    }

    /// Starts a sandbox from `base` that lives five minutes.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn create(&self) -> Result<Access, ControlError> {
        self.create_with(|_| {}).await
    }

    /// Starts a sandbox from a changed request.
    ///
    /// # Errors
    /// As [`Control::create`].
    pub async fn create_with(&self, change: impl FnOnce(&mut CreateRequest)) -> Result<Access, ControlError> {
        let mut request = request();
        change(&mut request);
        self.control.create(&self.team, request, None).await
    }

    /// Returns the engine's sandbox with this id.
    ///
    /// # Panics
    /// When the engine has never started it.
    #[must_use]
    pub fn guest(&self, id: &SandboxId) -> Arc<TestSandbox> {
        self.engine.sandbox(id).expect("the engine started it")
    }
}

/// A create request for `base`.
#[must_use]
pub fn request() -> CreateRequest {
    CreateRequest { template: "base".to_owned(), timeout: 300, ..CreateRequest::default() }
}

/// A public template without an owner.
#[must_use]
pub fn registration(alias: &str) -> Registration {
    Registration {
        team: None,
        alias: alias.to_owned(),
        public: true,
        layers: vec!["sha256-test".to_owned()],
        config: store::BuildConfig {
            default_user: Some("user".to_owned()),
            default_workdir: Some("/home/user".to_owned()),
            env: [("FROM_TEMPLATE".to_owned(), "1".to_owned())].into(),
            ..store::BuildConfig::default()
        },
        cpu_count: 2,
        memory_mib: 512,
        disk_mib: 1024,
    }
}

fn config() -> Config {
    Config::new(|digest| PathBuf::from("/nowhere").join(digest))
}
