//! Runs a template's start command in a sandbox and waits until its ready command succeeds. Needed where a sandbox does not start
//! from a warm start: at the end of a build, and at each create on engines without memory snapshots.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::Sandbox as EngineSandbox;
use ids::SandboxId;
use logs::{LineSplitter, LogLevel};
use store::{Build, BuildConfig, RunContext};
use template::steps::Context;
use tokio::time::Instant;

use super::Launcher;
use crate::ControlError;
use crate::envd::{self, Command, End, EnvdError, Output};

/// Maximum time until the ready command succeeds.
const MAX_READY: Duration = Duration::from_secs(600);
/// Shortest time between two runs of the ready command; it doubles each time.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time between two runs of the ready command, as in the contract.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// Ready command of templates that have only a start command.
const DEFAULT_READY: &str = "sleep 20";

/// Receives log lines about the start command.
pub(crate) type Log<'a> = &'a (dyn Fn(LogLevel, String) + Sync);

impl Launcher {
    /// Runs the start command of a build in a sandbox that was started without the build's warm start.
    ///
    /// # Errors
    /// [`ControlError::StartFailed`].
    pub(crate) async fn run_start_command(
        &self,
        build: &Build,
        id: &SandboxId,
        sandbox: &dyn EngineSandbox,
    ) -> Result<(), ControlError> {
        if build.snapshot.is_some() || build.config.start_cmd.is_none() {
            return Ok(());
        }
        let token = self.tokens.inner(id);
        let log = |_, text: String| tracing::debug!(sandbox_id = %id, text, "start command");
        run_start_command(sandbox, &token, &build.config, &log).await.map_err(ControlError::StartFailed)
    }
}

/// Runs the start command of `config` until its ready command succeeds; returns at once if there is neither.
///
/// # Errors
/// The start command failed, or the ready command did not succeed in time; the text says why.
pub(crate) async fn run_start_command(
    sandbox: &dyn EngineSandbox,
    token: &str,
    config: &BuildConfig,
    log: Log<'_>,
) -> Result<(), String> {
    let context = start_context(config);
    let ready_cmd = match (&config.ready_cmd, &config.start_cmd) {
        (Some(ready), _) => ready.as_str(),
        (None, Some(_)) => DEFAULT_READY,
        (None, None) => return Ok(()),
    };
    let commands = Commands { sandbox, token, context: &context };
    let failed_start = async {
        let Some(start) = &config.start_cmd else { return std::future::pending().await };
        log(LogLevel::Info, format!("Running start command: {start}"));
        let end = commands.run(start, None, |is_error, line| {
            let stream = if is_error { "stderr" } else { "stdout" };
            if !line.trim().is_empty() {
                log(LogLevel::Info, format!("[start] [{stream}]: {}", line.trim()));
            }
        });
        match end.await {
            // Some start commands start a daemon in the background and end.
            Ok(end) if end.is_success() => std::future::pending().await,
            Ok(end) => format!("start command failed: {}", end.status),
            Err(error) => format!("start command failed: {}", command_error(&error)),
        }
    };
    log(LogLevel::Info, format!("Waiting for template to be ready: {ready_cmd}"));
    tokio::select! {
        failure = failed_start => Err(failure),
        ready = commands.wait_until_ready(ready_cmd, log) => ready,
    }?;
    log(LogLevel::Info, "Template is ready".to_owned());
    Ok(())
}

/// Returns the text with which a build's log shows that a command could not be run.
pub(crate) fn command_error(error: &EnvdError) -> String {
    match error {
        EnvdError::Refused { .. } => format!("command failed: {error}"),
        _ => format!("the build's sandbox failed: {error}"),
    }
}

/// Runs command lines in one sandbox and context.
#[derive(Clone, Copy)]
struct Commands<'a> {
    sandbox: &'a dyn EngineSandbox,
    token: &'a str,
    context: &'a Context,
}

impl Commands<'_> {
    /// Runs a command line with bash; calls `line` with each line of output and whether it went to standard error.
    async fn run(
        self,
        text: &str,
        limit: Option<Duration>,
        mut line: impl FnMut(bool, &str) + Send,
    ) -> Result<End, EnvdError> {
        let args = self.context.bash_arguments(text);
        let command = Command {
            program: "/bin/bash",
            args: &args,
            user: &self.context.user,
            cwd: self.context.workdir.as_deref(),
            env: &self.context.env,
            limit,
        };
        let (mut out, mut err) = (LineSplitter::default(), LineSplitter::default());
        let end = envd::run(self.sandbox, self.token, &command, |output| match output {
            Output::Stdout(chunk) => out.push(chunk, |text| line(false, text)),
            Output::Stderr(chunk) => err.push(chunk, |text| line(true, text)),
        })
        .await;
        out.finish(|text| line(false, text));
        err.finish(|text| line(true, text));
        end
    }

    /// Runs the ready command until it succeeds.
    async fn wait_until_ready(self, ready: &str, log: Log<'_>) -> Result<(), String> {
        let begun = Instant::now();
        let mut pause = MIN_INTERVAL;
        loop {
            let left = MAX_READY.saturating_sub(begun.elapsed());
            let output = |_, line: &str| log(LogLevel::Debug, format!("[ready] {}", line.trim()));
            match self.run(ready, Some(left), output).await {
                Ok(end) if end.is_success() => return Ok(()),
                Ok(_) if begun.elapsed() + pause < MAX_READY => {}
                Ok(_) => {
                    return Err(format!(
                        "ready command failed: ready command timed out after {} s",
                        MAX_READY.as_secs()
                    ));
                }
                Err(error) => return Err(format!("ready command failed: {}", command_error(&error))),
            }
            // Nothing signals that the command would succeed now, so it is run again after a pause.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_INTERVAL);
        }
    }
}

/// Returns the user, directory and variables that the start command runs with.
fn start_context(config: &BuildConfig) -> Context {
    let RunContext { user, workdir, env } = config.start_context.clone().unwrap_or_else(|| RunContext {
        user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
        workdir: config.default_workdir.clone(),
        env: config.env.clone(),
    });
    Context { user, workdir, env: BTreeMap::from_iter(env) }
}
