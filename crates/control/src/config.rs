//! What an operator can set, with defaults for one machine of one's own.
//! Plain values; nothing is read from the environment here.
//! Durations are real time.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use layers::LayerStore;
use net::Cidr;
use store::TeamLimits;

/// Finds the directory of a layer by its digest.
pub type LayerPath = Arc<dyn Fn(&str) -> PathBuf + Send + Sync>;

/// Settings of the control plane.
#[derive(Clone)]
pub struct Config {
    /// Where the directory of a layer is.
    pub layer_path: LayerPath,
    /// Most sandboxes started at the same time; the others wait in order.
    pub parallel_starts: usize,
    /// Most starts that may wait; beyond it a create is refused.
    pub start_queue: usize,
    /// Longest time from a start's turn to a sandbox that answers.
    pub start_timeout: Duration,
    /// Longest wait for the engine to end a sandbox; after it the caller is told that it did not.
    pub kill_timeout: Duration,
    /// How long a paused sandbox's frozen processes are kept beside its snapshot, so that a resume only thaws them.
    pub keep_frozen: Duration,
    /// Maximum number of paused sandboxes whose frozen processes are kept. Beyond it, or when memory gets scarce, the oldest are
    /// killed first.
    pub keep_frozen_max: usize,
    /// Host name inside sandboxes.
    pub hostname: String,
    /// Most processes and threads of a sandbox.
    pub pids: u32,
    /// Limits of teams made from now on.
    pub default_limits: TeamLimits,
    /// Where logs of sandboxes are kept; without it there are none.
    pub logs_dir: Option<PathBuf>,
    /// Layers that builds start from and add to; without it no templates are built.
    pub layers: Option<LayerStore>,
    /// Whether those layers are this server's alone, so that it may remove what nothing uses any more.
    pub owns_layers: bool,
    /// Where builds keep their cache, uploads and logs.
    pub builds_dir: Option<PathBuf>,
    /// Authorities that sandboxes trust besides their template's, PEM: of a proxy on the way out, say.
    pub trusted_ca: Option<String>,
    /// How registries of container images are reached.
    pub registries: oci::Registries,
    /// Maximum number of pre-started sandboxes, of all templates together; 0 disables the pool.
    pub pool_max: usize,
    /// Maximum memory of all pre-started sandboxes together, bytes.
    pub pool_memory: u64,
    /// Where the operator's wishes for them are kept; without it a restart forgets them.
    pub pool_file: Option<PathBuf>,
    /// Where metrics of sandboxes and teams are kept; without it only the present is known.
    pub metrics_dir: Option<PathBuf>,
    /// Time from one sample of a sandbox's metrics to the next.
    pub sample_every: Duration,
    /// Networks that are not public and that webhooks may reach all the same.
    pub webhook_internal: Vec<Cidr>,
    /// Longest wait for a webhook's receiver.
    pub webhook_timeout: Duration,
    /// From a failed delivery to the next attempt; twice as long each time.
    pub webhook_retry: Duration,
    /// How long ended sandboxes, logs, metrics, events and idempotency keys are remembered.
    pub retention: Duration,
}

impl Config {
    /// The defaults. `layer_path` answers the directory of a layer by its digest.
    #[must_use]
    pub fn new(layer_path: impl Fn(&str) -> PathBuf + Send + Sync + 'static) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            layer_path: Arc::new(layer_path),
            parallel_starts: cores.max(2),
            start_queue: 1000,
            start_timeout: Duration::from_secs(30),
            kill_timeout: Duration::from_secs(30),
            keep_frozen: Duration::from_secs(120),
            keep_frozen_max: 64,
            hostname: "sandbox".to_owned(),
            pids: engine::DEFAULT_PIDS,
            default_limits: TeamLimits::default(),
            logs_dir: None,
            layers: None,
            owns_layers: false,
            builds_dir: None,
            trusted_ca: None,
            registries: oci::Registries::default(),
            pool_max: 0,
            pool_memory: 2 << 30,
            pool_file: None,
            metrics_dir: None,
            sample_every: Duration::from_secs(5),
            webhook_internal: Vec::new(),
            webhook_timeout: Duration::from_secs(10),
            webhook_retry: Duration::from_secs(10),
            retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("parallel_starts", &self.parallel_starts)
            .field("start_queue", &self.start_queue)
            .field("start_timeout", &self.start_timeout)
            .finish_non_exhaustive()
    }
}
