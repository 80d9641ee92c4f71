//! envd's state: the settings of `/init`, the processes, the watchers, the log lines.
//! It is shared by all requests; each part has its own lock, which is held briefly.
//! Nothing is stored on disk: memory snapshots contain the state.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::filesystem::watch::Watchers;
use crate::logs::Logs;
use crate::process::registry::ProcessRegistry;
use crate::rest::metrics::{CpuSample, Limits};
use crate::users::{self, User};

/// The state of envd.
#[derive(Debug)]
pub struct Envd {
    /// Settings of `/init`.
    pub settings: Mutex<Settings>,
    /// Processes started through the process service.
    pub processes: ProcessRegistry,
    /// Watchers that clients poll.
    pub watchers: Watchers,
    /// Processor time at the last metrics request.
    pub cpu: Mutex<Option<CpuSample>>,
    /// Log lines for the server.
    pub logs: Logs,
    /// Held while a request to `/init` is applied: one after the other.
    pub init: tokio::sync::Mutex<()>,
    /// Directory that contains `etc` and `run`, for `/init`.
    pub system_root: PathBuf,
}

impl Envd {
    /// Makes the state of an envd without settings.
    pub fn new(system_root: PathBuf) -> Self {
        Self {
            settings: Mutex::default(),
            processes: ProcessRegistry::default(),
            watchers: Watchers::default(),
            cpu: Mutex::default(),
            logs: Logs::default(),
            init: tokio::sync::Mutex::default(),
            system_root,
        }
    }

    /// Locks the settings.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// Returns the named user, or the default user.
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
    /// The request names it.
    #[error("invalid username: '{0}'")]
    Named(String),
    /// It is the default user, which `/init` set.
    #[error("invalid default user: '{0}'")]
    Default(String),
}

/// Settings of `/init`.
#[derive(Debug)]
pub struct Settings {
    /// Token that requests must carry, once it is set.
    pub token: Option<String>,
    /// Environment variables of the sandbox's creator, for every process.
    pub env: BTreeMap<String, String>,
    /// Environment variables that make programs trust the platform's certificate authorities. Any other value of theirs wins.
    pub trust_env: BTreeMap<String, String>,
    /// Environment variables of the platform, which override the creator's.
    pub platform_env: BTreeMap<String, String>,
    /// Default user of requests that name none.
    pub default_user: String,
    /// Working directory of processes that name none.
    pub default_workdir: Option<String>,
    /// Processors and memory of the sandbox, if `/init` set them.
    pub limits: Option<Limits>,
    /// Timestamp of the newest `/init` that was applied, nanoseconds since 1970.
    pub applied: Option<i128>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token: None,
            env: BTreeMap::new(),
            trust_env: BTreeMap::new(),
            platform_env: BTreeMap::from([("E2B_SANDBOX".to_owned(), "true".to_owned())]),
            default_user: "root".to_owned(),
            default_workdir: None,
            limits: None,
            applied: None,
        }
    }
}

impl Settings {
    /// Returns the environment variables of every process, with those that nobody has asked for.
    pub fn process_env(&self) -> BTreeMap<String, String> {
        let mut all = self.trust_env.clone();
        all.extend(self.all_env());
        all
    }

    /// Returns the environment variables of the creator and the platform.
    pub fn all_env(&self) -> BTreeMap<String, String> {
        let mut all = self.env.clone();
        all.extend(self.platform_env.clone());
        all
    }
}

/// Locks a mutex, also after a panic of another holder: no critical section leaves its value inconsistent.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
