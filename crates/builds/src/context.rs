//! Traits of what builds need from the rest of the server: [`BuildContext`] starts sandboxes and manages snapshots, [`BuildSandbox`] is
//! a sandbox of a build. The control plane implements both, so this crate depends neither on its registry nor on the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use engine::Descriptor;
use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use logs::LogLevel;
use serde::{Deserialize, Serialize};
use store::{Build, BuildConfig};

use super::StepFailure;

/// Functions of the server that builds use.
#[async_trait]
pub trait BuildContext: Send + Sync + 'static {
    /// Returns the engines of this server, the default one first.
    fn engines(&self) -> Vec<&Descriptor>;

    /// Waits for a turn in the queue of starts, then starts a sandbox that no client can reach.
    ///
    /// # Errors
    /// The sandbox could not be started; the text is shown in the build's log.
    async fn start_sandbox(&self, spec: BuildSandboxSpec) -> Result<Box<dyn BuildSandbox>, StepFailure>;

    /// Makes the engine prepare everything that sandboxes of a finished build need.
    ///
    /// # Errors
    /// The engine cannot use the build.
    async fn prepare(&self, build: &Build) -> Result<(), StepFailure>;

    /// Removes a snapshot that no build refers to.
    async fn discard_snapshot(&self, snapshot: SnapshotId);

    /// Removes a template's warm starts that no tag refers to any more.
    async fn drop_stale_warm_starts(&self, template: &TemplateId);

    /// Returns the signature of an upload link.
    fn upload_token(&self, team: TeamId, hash: &str, upload: &str, expires: i64) -> String;
}

/// Size of a template's sandboxes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Size {
    /// Number of processors.
    pub cpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Writable disk, MiB.
    pub disk_mib: u32,
}

/// What a build's sandbox starts from.
#[derive(Debug, Clone)]
pub enum BuildOrigin {
    /// The layers alone.
    Layers,
    /// The files of a snapshot, on top of the layers.
    Snapshot {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The sandbox that it was captured from.
        sandbox: SandboxId,
    },
}

/// What a build's sandbox is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its changes become a layer: the operator's certificate authorities must not get into its files, and its stack of layers
    /// is not used again.
    Layer,
    /// Its files are only read. It may have no shell, and nothing is written into it.
    Files,
    /// It becomes the template's warm start, and is like any sandbox of the template.
    WarmStart,
}

/// A sandbox that a build needs.
#[derive(Debug, Clone)]
pub struct BuildSandboxSpec {
    /// The team that builds.
    pub team: TeamId,
    /// The template that is built.
    pub template: TemplateId,
    /// Size of the sandbox.
    pub size: Size,
    /// Layer digests, uppermost first.
    pub layers: Vec<String>,
    /// What it starts from.
    pub origin: BuildOrigin,
    /// Defaults of its processes.
    pub config: BuildConfig,
    /// What it is for.
    pub purpose: Purpose,
}

/// A running sandbox of a build. Dropping it kills it.
#[async_trait]
pub trait BuildSandbox: Send + Sync {
    /// Returns its id.
    fn id(&self) -> &SandboxId;

    /// Runs a command until it ends and passes its output on as it comes.
    ///
    /// # Errors
    /// The command could not be started, or the sandbox ended.
    async fn run(
        &self,
        command: &Command<'_>,
        output: &mut (dyn for<'a> FnMut(Output<'a>) + Send),
    ) -> Result<Exit, StepFailure>;

    /// Copies the host's file `from` to `to` in the sandbox, as `user`.
    ///
    /// # Errors
    /// The file cannot be read or written, or the sandbox ended.
    async fn upload(&self, user: &str, from: &Path, to: &str) -> Result<(), StepFailure>;

    /// Runs the template's start command until its ready command succeeds; `log` receives what both print.
    ///
    /// # Errors
    /// The start command failed, or the ready command did not succeed in time.
    async fn run_start_command(
        &self,
        config: &BuildConfig,
        log: &(dyn Fn(LogLevel, String) + Sync),
    ) -> Result<(), StepFailure>;

    /// Writes the files that were changed as a layer tree to the new directory `target`.
    ///
    /// # Errors
    /// The engine failed.
    async fn export_layer(&self, target: &Path) -> Result<(), StepFailure>;

    /// Captures it with its memory as a new snapshot.
    ///
    /// # Errors
    /// The engine failed.
    async fn capture(&self) -> Result<SnapshotId, StepFailure>;

    /// Kills it and waits until its files are gone.
    async fn kill(&self);
}

/// A command to run in a sandbox.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    /// Path of the program.
    pub program: &'a str,
    /// Its arguments.
    pub args: &'a [&'a str],
    /// Name of the user who runs it.
    pub user: &'a str,
    /// Working directory; none is the user's home.
    pub cwd: Option<&'a str>,
    /// Environment variables.
    pub env: &'a BTreeMap<String, String>,
    /// Time after which it is killed.
    pub limit: Option<Duration>,
}

/// A chunk of a command's output; chunks may split characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<'a> {
    /// From standard output.
    Stdout(&'a [u8]),
    /// From standard error.
    Stderr(&'a [u8]),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code.
    pub code: i32,
    /// `exit status 1` or `signal: killed`, for example.
    pub status: String,
}

impl Exit {
    /// Returns whether the exit code is 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == 0
    }
}
