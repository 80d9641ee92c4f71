//! The records as plain data.
//! Sizes are MiB, times UTC with microsecond precision.
//! What is queried by is a field; what is only carried sits in a JSON document.

use std::collections::BTreeMap;

use ids::{BuildId, ExecutionId, KeyId, SandboxId, SnapshotId, TeamId, TemplateId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Cuts a time to the microseconds the store keeps, so that what is in memory equals what is read back.
#[must_use]
pub fn truncate_to_micros(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at)
}

/// What a team may use at once. Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TeamLimits {
    /// Running sandboxes.
    pub concurrent_sandboxes: u32,
    /// Longest life of one sandbox, hours.
    pub max_length_hours: u32,
    /// Processors of one sandbox.
    pub max_vcpu: u32,
    /// Memory of one sandbox, MiB.
    pub max_memory_mib: u32,
    /// Writable disk of one sandbox, MiB.
    pub max_disk_mib: u32,
    /// Template builds under way.
    pub concurrent_builds: u32,
}

impl Default for TeamLimits {
    /// Generous: on one's own machine the machine is the limit.
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

/// Whether the operator lets a team do things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Standing {
    /// Everything it has a right to.
    #[default]
    Good,
    /// Only look and delete; the reason, which may be empty.
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
    /// Whether the operator lets it do things.
    pub standing: Standing,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// The parts of a key that may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// `e2b_`.
    pub prefix: String,
    /// Characters after the prefix.
    pub value_length: usize,
    /// The first two of them.
    pub first: String,
    /// The last four of them.
    pub last: String,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The record's id.
    pub id: KeyId,
    /// Whose it is.
    pub team: TeamId,
    /// Its name for people.
    pub name: String,
    /// `$sha256$` and the unpadded base64 of the SHA-256 of the decoded bytes.
    pub hash: String,
    /// What may be shown of it.
    pub mask: Mask,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it last opened a door.
    pub last_used: Option<OffsetDateTime>,
}

/// A name of a template: `namespace/alias`, or `alias` alone in the global namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateName {
    /// A team's slug; none is the global namespace.
    pub namespace: Option<String>,
    /// The name proper.
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
    /// Whose it is; none means everybody's.
    pub team: Option<TeamId>,
    /// Its names, in order of their text.
    pub names: Vec<TemplateName>,
    /// Whether other teams may use it.
    pub public: bool,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// Sandboxes started from it.
    pub spawn_count: u64,
    /// The last such start.
    pub last_spawned: Option<OffsetDateTime>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// Asked for.
    Waiting,
    /// Under way.
    Building,
    /// Usable.
    Ready,
    /// Failed.
    Error,
}

impl BuildStatus {
    /// As on the wire and in the database.
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

/// What a build says about the sandboxes made from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildConfig {
    /// User of commands that name none.
    pub default_user: Option<String>,
    /// Directory of commands that name none.
    pub default_workdir: Option<String>,
    /// Environment of every process.
    pub env: BTreeMap<String, String>,
    /// Command running in every sandbox.
    pub start_cmd: Option<String>,
    /// Command that succeeds once the start command serves.
    pub ready_cmd: Option<String>,
    /// What both run with, where it is not the above: of a template that inherited them.
    pub start_context: Option<RunContext>,
    /// Name of the engine that runs its sandboxes; none leaves it to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Who runs a command, where, and with which variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunContext {
    /// Who.
    pub user: String,
    /// Where; none is the user's home.
    pub workdir: Option<String>,
    /// With what.
    pub env: BTreeMap<String, String>,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// For its owner.
    pub message: String,
    /// `base`, `finalize`, or the step's number from 1.
    pub step: Option<String>,
}

/// A build that is a captured sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSnapshot {
    /// The captured state.
    pub id: SnapshotId,
    /// Whether memory is in it.
    pub memory: bool,
    /// The sandbox it was captured from: its agent knows that one's token.
    pub sandbox: SandboxId,
    /// The template that sandbox came from.
    pub base: TemplateId,
    /// Whether it is the warm start of a template that was built, and no snapshot to its users.
    #[serde(default)]
    pub warm_start: bool,
}

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// What it is a build of.
    pub template: TemplateId,
    /// How far it is.
    pub status: BuildStatus,
    /// Processors of a sandbox.
    pub cpu_count: u32,
    /// Memory of a sandbox, MiB.
    pub memory_mib: u32,
    /// Writable disk of a sandbox, MiB.
    pub disk_mib: u32,
    /// Version of the agent it was made for.
    pub envd_version: String,
    /// Layer digests, uppermost first.
    pub layers: Vec<String>,
    /// Defaults for its sandboxes.
    pub config: BuildConfig,
    /// The captured state its sandboxes go on from; none for templates without a start command.
    pub snapshot: Option<BuildSnapshot>,
    /// Why it failed.
    pub failure: Option<BuildFailure>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// When it became ready or failed.
    pub finished_at: Option<OffsetDateTime>,
}

impl Build {
    /// Whether it is a sandbox that somebody captured, and not a template that was built.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| !snapshot.warm_start)
    }
}

/// From `created_at` on, the tag means this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagAssignment {
    /// Of which template.
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

/// What happens at the end of a sandbox's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lifecycle {
    /// Pause instead of killing.
    pub auto_pause: bool,
    /// Keep the memory when pausing so.
    pub auto_pause_memory: bool,
    /// Let traffic wake it.
    pub auto_resume: bool,
    /// Life it has when traffic wakes it, seconds.
    pub resume_timeout: i64,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { auto_pause: false, auto_pause_memory: true, auto_resume: false, resume_timeout: 300 }
    }
}

/// A sandbox's network settings as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// Whether ports are reachable without the traffic token; none means the default, yes.
    pub allow_public_traffic: Option<bool>,
    /// Networks, addresses and names reachable although denied.
    pub allow_out: Option<Vec<String>>,
    /// Networks and addresses refused.
    pub deny_out: Option<Vec<String>>,
    /// Name servers reachable when a name is allowed.
    pub dns_servers: Option<Vec<String>>,
    /// Host header for servers inside; `${PORT}` stands for the port.
    pub mask_request_host: Option<String>,
}

/// What is only carried along with a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxDetails {
    /// Name of the template it was asked for by.
    pub alias: Option<String>,
    /// The user's own notes.
    pub metadata: BTreeMap<String, String>,
    /// What happens at the end.
    pub lifecycle: Lifecycle,
    /// Network settings; none when none were given.
    pub network: Option<NetworkConfig>,
    /// Whether the internet was explicitly allowed or refused.
    pub allow_internet_access: Option<bool>,
    /// Processors.
    pub cpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Writable disk, MiB.
    pub disk_mib: u32,
    /// Version its agent reports.
    pub envd_version: String,
    /// Digests of the layers under its own files, uppermost first: they outlive the template's record.
    pub layers: Vec<String>,
    /// Defaults it was started with.
    pub config: BuildConfig,
}

/// What a paused sandbox is brought back from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The captured state.
    pub snapshot: SnapshotId,
    /// Whether the state is this sandbox's alone and goes when it is resumed or ended.
    pub owned: bool,
    /// Whether memory is in it.
    pub memory: bool,
    /// The sandbox whose token the captured agent knows.
    pub captured_from: SandboxId,
    /// When, microseconds since the epoch.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub at: OffsetDateTime,
    /// Whether its agent did not answer then.
    #[serde(default)]
    pub unresponsive: bool,
}

/// A sandbox as remembered. Neither environment nor tokens are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub team: TeamId,
    /// The template it came from.
    pub template: TemplateId,
    /// The build of it.
    pub build: BuildId,
    /// The present run.
    pub execution: ExecutionId,
    /// Where it stands.
    pub state: SandboxState,
    /// Start of the present run.
    pub started_at: OffsetDateTime,
    /// When its time is up.
    pub end_at: OffsetDateTime,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Present while it is paused.
    pub pause: Option<Pause>,
    /// The rest.
    pub details: SandboxDetails,
}

/// A create call that must have one result however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Whose key it is.
    pub team: TeamId,
    /// The client's key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
    /// What was created.
    pub sandbox: SandboxId,
    /// When.
    pub created_at: OffsetDateTime,
}
