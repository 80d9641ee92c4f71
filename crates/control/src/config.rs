//! [`Config`]: settings of the control plane with their defaults. Nothing is read from the environment here.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use egress_log::EgressLog;
use identity::Issuer;
use layers::LayerStore;
use net::{Cidr, OperatorPolicies, ProxyHosts};
use secrets::Secrets;
use store::TeamLimits;
use volumes::VolumeTrees;

/// Returns the directory of a layer by its digest.
pub type LayerPath = Arc<dyn Fn(&str) -> PathBuf + Send + Sync>;

/// Settings of the control plane.
#[derive(Clone)]
pub struct Config {
    /// Returns the directory of a layer.
    pub layer_path: LayerPath,
    /// Maximum number of sandboxes that start at once; further starts wait in order.
    pub parallel_starts: usize,
    /// Maximum number of waiting starts; further creates are refused.
    pub start_queue: usize,
    /// Maximum time from a start's turn until its sandbox answers.
    pub start_timeout: Duration,
    /// Maximum time for the engine to kill a sandbox; after it the call fails.
    pub kill_timeout: Duration,
    /// Time from a failed pause at the end of a sandbox's time to the next attempt.
    pub pause_retry: Duration,
    /// How long a paused sandbox's frozen processes are kept beside its snapshot, so that a resume only thaws them.
    pub keep_frozen: Duration,
    /// Maximum number of paused sandboxes whose frozen processes are kept. Beyond it, or when memory gets scarce, the oldest are
    /// killed first.
    pub keep_frozen_max: usize,
    /// Host name inside sandboxes.
    pub hostname: String,
    /// Maximum number of processes and threads of a sandbox.
    pub pids: u32,
    /// Limits of new teams.
    pub default_limits: TeamLimits,
    /// Directory of logs of sandboxes; without it none are kept.
    pub logs_dir: Option<PathBuf>,
    /// Layers that builds start from and add to; without it no templates are built.
    pub layers: Option<LayerStore>,
    /// Whether those layers belong to this server alone, so that it may remove unused ones.
    pub owns_layers: bool,
    /// Directory of cache, uploads and logs of builds.
    pub builds_dir: Option<PathBuf>,
    /// Where the content of volumes is; without it there are none.
    pub volumes: Option<Arc<VolumeTrees>>,
    /// Certificate authorities that sandboxes trust besides their template's, PEM, such as the authority of an outgoing proxy.
    pub trusted_ca: Option<String>,
    /// The server's own certificate authorities, by which connections to hosts with header rules are intercepted, PEM.
    pub egress_ca: Option<String>,
    /// Secrets of teams; without it there are none.
    pub secrets: Option<Arc<Secrets>>,
    /// Signs identity tokens of sandboxes; without it there are none.
    pub identity: Option<Arc<Issuer>>,
    /// What the operator permits of connections out of sandboxes; told of the teams' lists.
    pub operator_policies: Arc<OperatorPolicies>,
    /// The connections of sandboxes; without it none are kept.
    pub egress_log: Option<Arc<EgressLog>>,
    /// Checks where proxies of sandboxes are; without it there are none.
    pub proxy_hosts: Option<Arc<ProxyHosts>>,
    /// How registries of container images are reached.
    pub registries: oci::Registries,
    /// Maximum number of pre-started sandboxes, of all templates together; 0 disables the pool.
    pub pool_max: usize,
    /// Maximum memory of all pre-started sandboxes together, bytes.
    pub pool_memory: u64,
    /// File of the numbers of pre-started sandboxes that the operator has set; without it they are lost at a restart.
    pub pool_file: Option<PathBuf>,
    /// Directory of metrics of sandboxes and teams; without it only the latest samples are known.
    pub metrics_dir: Option<PathBuf>,
    /// Time between two samples of a sandbox's metrics.
    pub sample_every: Duration,
    /// Private networks that webhooks may reach nevertheless.
    pub webhook_internal: Vec<Cidr>,
    /// Maximum time that a webhook's receiver has to answer.
    pub webhook_timeout: Duration,
    /// Time from a failed delivery to the next attempt; it doubles each time.
    pub webhook_retry: Duration,
    /// How long records of ended sandboxes, logs, metrics, events and idempotency keys are kept.
    pub retention: Duration,
}

impl Config {
    /// The defaults. `layer_path` returns the directory of a layer by its digest.
    #[must_use]
    pub fn new(layer_path: impl Fn(&str) -> PathBuf + Send + Sync + 'static) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            layer_path: Arc::new(layer_path),
            parallel_starts: cores.max(2),
            start_queue: 1000,
            start_timeout: Duration::from_secs(30),
            kill_timeout: Duration::from_secs(30),
            pause_retry: Duration::from_secs(30),
            keep_frozen: Duration::from_secs(120),
            keep_frozen_max: 64,
            hostname: "sandbox".to_owned(),
            pids: engine::DEFAULT_PIDS,
            default_limits: TeamLimits::default(),
            logs_dir: None,
            layers: None,
            owns_layers: false,
            builds_dir: None,
            volumes: None,
            trusted_ca: None,
            egress_ca: None,
            secrets: None,
            identity: None,
            operator_policies: Arc::default(),
            egress_log: None,
            proxy_hosts: None,
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
