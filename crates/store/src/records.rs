//! The records of teams, keys, templates, builds and sandboxes, as plain data.
//! Sizes are MiB, times UTC with microsecond precision. What queries need is a field and a column; the rest is stored as a JSON
//! document.

use std::collections::BTreeMap;

use egress_rules::{EgressProxy, NetworkRules};
use ids::{BuildId, ExecutionId, KeyId, SandboxId, SnapshotId, TeamId, TemplateId, VolumeId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Cuts a time to microseconds, the store's precision, so that times in memory equal those that are read back.
#[must_use]
pub fn truncate_to_micros(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at)
}

/// Limits of a team. Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TeamLimits {
    /// Maximum number of running sandboxes.
    pub concurrent_sandboxes: u32,
    /// Maximum lifetime of a sandbox, hours.
    pub max_length_hours: u32,
    /// Maximum number of processors of a sandbox.
    pub max_vcpu: u32,
    /// Maximum memory of a sandbox, MiB.
    pub max_memory_mib: u32,
    /// Maximum writable disk of a sandbox, MiB.
    pub max_disk_mib: u32,
    /// Maximum number of builds at a time.
    pub concurrent_builds: u32,
}

impl Default for TeamLimits {
    /// Generous, as the host's resources are the limit of a private server.
    fn default() -> Self {
        Self {
            concurrent_sandboxes: 10_000,
            max_length_hours: 24 * 30,
            max_vcpu: 0,
            max_memory_mib: 0,
            max_disk_mib: 0,
            concurrent_builds: 20,
        }
    }
}

/// Where sandboxes of a team may connect to, by the operator's will: networks, addresses and host names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TeamEgress {
    /// What is denied whatever the rules of a sandbox are.
    pub deny: Vec<String>,
    /// If there is such a list, everything that is not in it is denied too.
    pub allow_only: Option<Vec<String>>,
}

/// What the operator allows a team to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Standing {
    /// Everything within its limits.
    #[default]
    Good,
    /// Only read and delete; with the reason, which may be empty.
    Blocked(String),
    /// Nothing.
    Banned,
}

/// Owner of sandboxes, templates and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Its name for people.
    pub name: String,
    /// Its namespace in template names.
    pub slug: String,
    /// Its limits.
    pub limits: TeamLimits,
    /// Where its sandboxes may connect to.
    pub egress: TeamEgress,
    /// What the operator allows it to do.
    pub standing: Standing,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// The parts of a secret that may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// `e2b_`.
    pub prefix: String,
    /// Characters after the prefix.
    pub value_length: usize,
    /// The first two characters after the prefix.
    pub first: String,
    /// The last four characters.
    pub last: String,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The record's id.
    pub id: KeyId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its name for people.
    pub name: String,
    /// `$sha256$` and the unpadded base64 of the SHA-256 of the decoded bytes.
    pub hash: String,
    /// The parts that may be shown.
    pub mask: Mask,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it was last used.
    pub last_used: Option<OffsetDateTime>,
}

/// A name of a template: `namespace/alias`, or `alias` alone in the global namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateName {
    /// A team's slug; `None` is the global namespace.
    pub namespace: Option<String>,
    /// The name without the namespace.
    pub alias: String,
}

impl std::fmt::Display for TemplateName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.alias),
            None => f.write_str(&self.alias),
        }
    }
}

/// A template: a name for a series of builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// The team that owns it; `None` for templates of the server.
    pub team: Option<TeamId>,
    /// Its names, sorted.
    pub names: Vec<TemplateName>,
    /// Whether other teams may use it.
    pub public: bool,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// Number of sandboxes started from it.
    pub spawn_count: u64,
    /// When the last one was started.
    pub last_spawned: Option<OffsetDateTime>,
}

/// The state of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// Requested.
    Waiting,
    /// Being built.
    Building,
    /// Usable.
    Ready,
    /// Failed.
    Error,
}

impl BuildStatus {
    /// Returns the value's name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        [Self::Waiting, Self::Building, Self::Ready, Self::Error]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("unknown build status {text:?}"))
    }
}

/// Defaults of a build for its sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildConfig {
    /// User of commands that name no user.
    pub default_user: Option<String>,
    /// Working directory of commands that name none.
    pub default_workdir: Option<String>,
    /// Environment variables of every process.
    pub env: BTreeMap<String, String>,
    /// Command that runs in every sandbox.
    pub start_cmd: Option<String>,
    /// Command that succeeds once the start command is ready.
    pub ready_cmd: Option<String>,
    /// User, directory and variables of both commands, if they differ from the above: for templates that inherited the commands.
    pub start_context: Option<RunContext>,
    /// Name of the engine that runs its sandboxes; `None` for the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// User, working directory and environment variables of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunContext {
    /// The user.
    pub user: String,
    /// The working directory; `None` for the user's home.
    pub workdir: Option<String>,
    /// The environment variables.
    pub env: BTreeMap<String, String>,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// The reason, for its owner.
    pub message: String,
    /// `base`, `finalize`, or the step's number from 1.
    pub step: Option<String>,
}

/// The snapshot that a build consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Whether it contains memory.
    pub memory: bool,
    /// The sandbox it was captured from, whose token the envd in it knows.
    pub sandbox: SandboxId,
    /// The template of that sandbox.
    pub base: TemplateId,
    /// Whether it is the warm start of a built template, as opposed to a user's snapshot.
    #[serde(default)]
    pub warm_start: bool,
}

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Its template.
    pub template: TemplateId,
    /// Its state.
    pub status: BuildStatus,
    /// Processors of a sandbox.
    pub cpu_count: u32,
    /// Memory of a sandbox, MiB.
    pub memory_mib: u32,
    /// Writable disk of a sandbox, MiB.
    pub disk_mib: u32,
    /// Version of envd that it was built for.
    pub envd_version: String,
    /// Layer digests, uppermost first.
    pub layers: Vec<String>,
    /// Defaults for its sandboxes.
    pub config: BuildConfig,
    /// The snapshot that its sandboxes are restored from; `None` for templates without a start command.
    pub snapshot: Option<BuildSnapshot>,
    /// Why it failed.
    pub failure: Option<BuildFailure>,
    /// When it was requested.
    pub created_at: OffsetDateTime,
    /// When it became ready or failed.
    pub finished_at: Option<OffsetDateTime>,
}

impl Build {
    /// Returns whether it is a user's snapshot of a sandbox, as opposed to a built template.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| !snapshot.warm_start)
    }
}

/// Assigns a tag of a template to a build, from `created_at` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagAssignment {
    /// The template.
    pub template: TemplateId,
    /// The tag, `default` included.
    pub tag: String,
    /// The build it means.
    pub build: BuildId,
    /// Since when.
    pub created_at: OffsetDateTime,
}

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Alive.
    Running,
    /// Captured and stopped.
    Paused,
    /// Over for good.
    Ended,
}

impl SandboxState {
    /// As in the database; the wire knows only the first two.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        [Self::Running, Self::Paused, Self::Ended]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("unknown sandbox state {text:?}"))
    }
}

/// What happens when a sandbox's timeout expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lifecycle {
    /// Pause it instead of killing it.
    pub auto_pause: bool,
    /// Include memory when it is paused so.
    pub auto_pause_memory: bool,
    /// What happens instead when it cannot be paused so.
    pub auto_pause_fallback: PauseFallback,
    /// Resume it when there is traffic for it.
    pub auto_resume: bool,
    /// Timeout after a resume by traffic, seconds.
    pub resume_timeout: i64,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            auto_pause: false,
            auto_pause_memory: true,
            auto_pause_fallback: PauseFallback::default(),
            auto_resume: false,
            resume_timeout: 300,
        }
    }
}

/// What happens to a sandbox whose time is up and that cannot be paused as its owner asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseFallback {
    /// It is paused without its memory, and killed if that fails too.
    #[default]
    Filesystem,
    /// It is killed.
    Kill,
}

/// A sandbox's network settings as requested.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// Whether ports are reachable without the traffic token; `None` for the default, yes.
    pub allow_public_traffic: Option<bool>,
    /// Networks, addresses and names that are reachable even if `deny_out` contains them.
    pub allow_out: Option<Vec<String>>,
    /// Networks and addresses that are not reachable.
    pub deny_out: Option<Vec<String>>,
    /// Name servers that are reachable when a name is allowed.
    pub dns_servers: Option<Vec<String>>,
    /// Host header for servers inside; `${PORT}` stands for the port.
    pub mask_request_host: Option<String>,
    /// Headers that the gateway sets on requests, by host. Placeholders for secrets are not replaced here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<NetworkRules>,
    /// The proxy that outgoing connections go through. Its password is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
}

/// Fields of a sandbox that no query needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxDetails {
    /// The name of the template in the create request.
    pub alias: Option<String>,
    /// Key-value pairs of the user.
    pub metadata: BTreeMap<String, String>,
    /// What happens when its timeout expires.
    pub lifecycle: Lifecycle,
    /// Network settings, if any were given.
    pub network: Option<NetworkConfig>,
    /// Whether the internet was explicitly allowed or refused.
    pub allow_internet_access: Option<bool>,
    /// Processors.
    pub cpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Writable disk, MiB.
    pub disk_mib: u32,
    /// Version that its envd reports.
    pub envd_version: String,
    /// Digests of its layers, uppermost first: kept here because the template may be deleted.
    pub layers: Vec<String>,
    /// Defaults it was started with.
    pub config: BuildConfig,
    /// Audiences of the identity tokens that its header rules may send, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub identity_tokens: BTreeMap<String, String>,
    /// Volumes that it has mounted, in the order of the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
}

/// A volume that a sandbox has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume.
    pub volume: VolumeId,
    /// Its name when the sandbox was created.
    pub name: String,
    /// Where it is mounted, absolute.
    pub path: String,
    /// Whether the sandbox may only read.
    #[serde(default)]
    pub read_only: bool,
    /// The directory of the volume that is mounted; `None` for all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
}

/// What a paused sandbox is resumed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whether the snapshot belongs to this sandbox only and is removed when that is resumed or ends.
    pub owned: bool,
    /// Whether it contains memory.
    pub memory: bool,
    /// The sandbox whose token the captured envd knows.
    pub captured_from: SandboxId,
    /// When it was paused, microseconds since 1970.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub at: OffsetDateTime,
    /// Whether its envd did not answer at that time.
    #[serde(default)]
    pub unresponsive: bool,
}

/// A sandbox. Neither environment variables nor tokens are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its template.
    pub template: TemplateId,
    /// The build of the template.
    pub build: BuildId,
    /// The current execution: the time between a start or resume and the next stop or pause.
    pub execution: ExecutionId,
    /// Its state.
    pub state: SandboxState,
    /// Start of the current execution.
    pub started_at: OffsetDateTime,
    /// When its timeout expires.
    pub end_at: OffsetDateTime,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Present while it is paused.
    pub pause: Option<Pause>,
    /// Fields that no query needs.
    pub details: SandboxDetails,
}

/// The idempotency key of a create request, which creates one sandbox however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The team that sent it.
    pub team: TeamId,
    /// The client's key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
    /// The created sandbox.
    pub sandbox: SandboxId,
    /// When it was created.
    pub created_at: OffsetDateTime,
}
