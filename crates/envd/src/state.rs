//! What envd knows between requests: the settings of `/init`, the processes, the watchers.
//! One value, shared by reference count; each part has its own lock, held only for a moment.
//! Nothing is on disk: a memory snapshot carries all of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::filesystem::watch::Watchers;
use crate::logs::Logs;
use crate::process::table::Table;
use crate::rest::metrics::{CpuSample, Given};
use crate::users::{self, User};

/// Everything.
#[derive(Debug)]
pub struct Envd {
    /// What `/init` set.
    pub settings: Mutex<Settings>,
    /// Processes started through the process service.
    pub processes: Table,
    /// Watchers that are polled.
    pub watchers: Watchers,
    /// CPU time at the last look at the metrics.
    pub cpu: Mutex<Option<CpuSample>>,
    /// What happened, for the server.
    pub logs: Logs,
    /// Requests to `/init` are applied one after another.
    pub init: tokio::sync::Mutex<()>,
    /// Where `/init` finds `etc` and `run`.
    pub system_root: PathBuf,
}

impl Envd {
    /// An envd that nothing has been told yet.
    pub fn new(system_root: PathBuf) -> Self {
        Self {
            settings: Mutex::default(),
            processes: Table::default(),
            watchers: Watchers::default(),
            cpu: Mutex::default(),
            logs: Logs::default(),
            init: tokio::sync::Mutex::default(),
            system_root,
        }
    }

    /// The settings, for a moment.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// The named user, or the default one. The error is the name that nobody has.
    pub fn user(&self, name: Option<&str>) -> Result<User, NoUser> {
        let named = name.filter(|name| !name.is_empty());
        match named {
            Some(name) => users::find(name).ok_or_else(|| NoUser::Named(name.to_owned())),
            None => {
                let name = self.settings().default_user.clone();
                users::find(&name).ok_or(NoUser::Default(name))
            }
        }
    }
}

/// A user that does not exist.
#[derive(Debug, thiserror::Error)]
pub enum NoUser {
    /// Asked for by the request.
    #[error("invalid username: '{0}'")]
    Named(String),
    /// Set by `/init`.
    #[error("invalid default user: '{0}'")]
    Default(String),
}

/// What `/init` sets.
#[derive(Debug)]
pub struct Settings {
    /// Demanded of requests once it is set.
    pub token: Option<String>,
    /// Variables of the sandbox' creator, for every process.
    pub env: BTreeMap<String, String>,
    /// Variables of the platform: these win over the creator's.
    pub platform_env: BTreeMap<String, String>,
    /// Whom requests act as that name nobody.
    pub default_user: String,
    /// Where processes start that name no directory.
    pub default_workdir: Option<String>,
    /// What the sandbox may use, where `/init` told.
    pub given: Option<Given>,
    /// Nanoseconds of the newest `/init` that was applied.
    pub applied: Option<i128>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token: None,
            env: BTreeMap::new(),
            platform_env: BTreeMap::from([("E2B_SANDBOX".to_owned(), "true".to_owned())]),
            default_user: "root".to_owned(),
            default_workdir: None,
            given: None,
            applied: None,
        }
    }
}

impl Settings {
    /// The variables every process gets.
    pub fn all_env(&self) -> BTreeMap<String, String> {
        let mut all = self.env.clone();
        all.extend(self.platform_env.clone());
        all
    }
}

/// Locks, also after a panic elsewhere: every critical section here leaves its value whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
