//! [`ControlBuildContext`]: how builds start sandboxes and manage snapshots, for the crate `builds`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use builds::{
    BuildContext, BuildOrigin, BuildSandbox, BuildSandboxSpec, Command, Exit, Output, Purpose, Size,
    StepFailure,
};
use engine::{Descriptor, Durability, EngineError, RestoreMode};
use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use logs::LogLevel;
use store::{Build, BuildConfig};
use telemetry::CaptureKind;

use crate::envd;
use crate::sandboxes::start_command::{command_error, run_start_command};
use crate::sandboxes::{KillOnDrop, LaunchSource, LaunchSpec, Launcher, SnapshotCleaner};
use crate::{ControlError, envd::EnvdError};

/// What builds use of the control plane.
pub(crate) struct ControlBuildContext {
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) snapshots: Arc<SnapshotCleaner>,
}

#[async_trait]
impl BuildContext for ControlBuildContext {
    fn engines(&self) -> Vec<&Descriptor> {
        self.launcher.engines()
    }

    async fn start_sandbox(&self, spec: BuildSandboxSpec) -> Result<Box<dyn BuildSandbox>, StepFailure> {
        let started = start_sandbox(&self.launcher, spec).await.map_err(|error| failure(&error))?;
        Ok(Box::new(started))
    }

    async fn prepare(&self, build: &Build) -> Result<(), StepFailure> {
        self.launcher.prepare(build).await.map_err(|error| failure(&error))
    }

    async fn discard_snapshot(&self, snapshot: SnapshotId) {
        self.snapshots.discard(snapshot).await;
    }

    async fn drop_stale_warm_starts(&self, template: &TemplateId) {
        self.snapshots.drop_stale_warm_starts(template).await;
    }

    fn upload_token(&self, team: TeamId, hash: &str, upload: &str, expires: i64) -> String {
        self.launcher.tokens.upload(team, hash, upload, expires)
    }
}

fn failure(error: &ControlError) -> StepFailure {
    StepFailure::new(error.to_string())
}

async fn start_sandbox(
    launcher: &Arc<Launcher>,
    spec: BuildSandboxSpec,
) -> Result<StartedBuildSandbox, ControlError> {
    let id = SandboxId::generate();
    let Size { cpu_count, memory_mib, disk_mib } = spec.size;
    let is_like_any = spec.purpose == Purpose::WarmStart;
    let launch = LaunchSpec {
        id: id.clone(),
        team: spec.team,
        template: spec.template,
        layers: spec.layers,
        env: Some(spec.config.env.clone()),
        config: spec.config,
        cpu_count,
        memory_mib,
        disk_mib,
        egress: net::EgressPolicy::default(),
        source: match spec.origin {
            BuildOrigin::Layers => LaunchSource::Template,
            BuildOrigin::Snapshot { snapshot, sandbox } => {
                LaunchSource::Snapshot { snapshot, restore_mode: RestoreMode::Disk, captured_from: sandbox }
            }
        },
        volumes: Vec::new(),
        trusts_operator_ca: is_like_any,
        shares_layers: is_like_any,
    };
    // Not within the start's time limit: some engines make a disk of new layers, which takes long.
    launcher.prepare_layers(&launch.layers, launch.config.engine.as_deref(), launch.shares_layers).await?;
    let permit = launcher.queue.join()?.turn().await?;
    let sandbox = KillOnDrop::new(launcher.launch(&launch).await?, &launcher.tasks);
    drop(permit);
    sandbox.get().set_team(launch.team);
    Ok(StartedBuildSandbox { token: launcher.tokens.inner(&id), id, sandbox })
}

/// A running sandbox of a build.
struct StartedBuildSandbox {
    id: SandboxId,
    token: String,
    sandbox: KillOnDrop,
}

impl StartedBuildSandbox {
    /// Logs a failure of the engine, and returns what the build's log shows.
    fn engine_failure(&self, error: &EngineError, what: &'static str) -> StepFailure {
        tracing::warn!(sandbox_id = %self.id, %error, "{what}");
        StepFailure::new(error.for_clients())
    }
}

fn command_failure(error: &EnvdError) -> StepFailure {
    StepFailure::new(command_error(error))
}

#[async_trait]
impl BuildSandbox for StartedBuildSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn run(
        &self,
        command: &Command<'_>,
        output: &mut (dyn for<'a> FnMut(Output<'a>) + Send),
    ) -> Result<Exit, StepFailure> {
        let command = envd::Command {
            program: command.program,
            args: command.args,
            user: command.user,
            cwd: command.cwd,
            env: command.env,
            limit: command.limit,
        };
        let end = envd::run(self.sandbox.get(), &self.token, &command, |chunk| match chunk {
            envd::Output::Stdout(bytes) => output(Output::Stdout(bytes)),
            envd::Output::Stderr(bytes) => output(Output::Stderr(bytes)),
        });
        let end = end.await.map_err(|error| command_failure(&error))?;
        Ok(Exit { code: end.exit_code, status: end.status })
    }

    async fn upload(&self, user: &str, from: &Path, to: &str) -> Result<(), StepFailure> {
        envd::upload(self.sandbox.get(), &self.token, user, from, to)
            .await
            .map_err(|error| command_failure(&error))
    }

    async fn run_start_command(
        &self,
        config: &BuildConfig,
        log: &(dyn Fn(LogLevel, String) + Sync),
    ) -> Result<(), StepFailure> {
        run_start_command(self.sandbox.get(), &self.token, config, log).await.map_err(StepFailure::new)
    }

    async fn export_layer(&self, target: &Path) -> Result<(), StepFailure> {
        let exported = self.sandbox.get().export_layer(target).await;
        exported.map_err(|error| self.engine_failure(&error, "failed to export a layer"))
    }

    async fn capture(&self) -> Result<SnapshotId, StepFailure> {
        let snapshot = SnapshotId::generate();
        let timer = telemetry::capture_timer(CaptureKind::Template);
        let captured = self.sandbox.get().capture(snapshot, true, Durability::Durable).await;
        captured.map_err(|error| self.engine_failure(&error, "failed to capture a template"))?;
        timer.succeeded();
        Ok(snapshot)
    }

    async fn kill(&self) {
        if let Err(error) = self.sandbox.get().kill().await {
            tracing::warn!(sandbox_id = %self.id, %error, "failed to kill a build's sandbox cleanly");
        }
    }
}
