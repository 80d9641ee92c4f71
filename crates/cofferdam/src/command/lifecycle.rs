//! `cofferdam sandbox pause`, `resume`, `fork` and `rollback`.
//! Ids of the sandboxes go to standard output, messages to standard error.
//! Each of several sandboxes is tried; the exit code is 0 if all succeeded.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use cofferdam_client::{Error, PauseOptions, Sandbox};

use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Arguments of `sandbox pause`.
#[derive(Debug, Args)]
pub(crate) struct PauseArguments {
    #[command(flatten)]
    data: DataDir,
    /// Sandbox ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Keep files without memory: a resume is a reboot.
    #[arg(long)]
    disk_only: bool,
    /// Refuse if the sandbox's envd does not answer.
    #[arg(long)]
    require_healthy: bool,
}

/// Arguments of `sandbox resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArguments {
    #[command(flatten)]
    data: DataDir,
    /// Sandbox ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Minimum time from now until the time limit, seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Discard the memory and start from the files, as after a reboot.
    #[arg(long)]
    reboot: bool,
}

/// Arguments of `sandbox fork`.
#[derive(Debug, Args)]
pub(crate) struct ForkArguments {
    #[command(flatten)]
    data: DataDir,
    /// Id of the running sandbox.
    id: String,
    /// Number of forks, at most 100.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    count: u32,
    /// Time limit of each fork, seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// What to roll back, and where to.
#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    #[command(flatten)]
    data: DataDir,
    /// Id of the running sandbox.
    id: String,
    /// One of its snapshots, by id or name. What the sandbox did since is gone.
    snapshot: String,
}

pub(crate) async fn pause(arguments: PauseArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let options = PauseOptions { memory: !arguments.disk_only, require_healthy: arguments.require_healthy };
    let mut code = ExitCode::SUCCESS;
    for id in &arguments.ids {
        match Sandbox::pause_by_id(&client, id, options).await {
            Ok(true) => show::line(id)?,
            Ok(false) => {
                eprintln!("{id} is paused already");
                show::line(id)?;
            }
            Err(error) => code = failed(id, &error),
        }
    }
    Ok(code)
}

pub(crate) async fn resume(arguments: ResumeArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let timeout = Some(Duration::from_secs(arguments.timeout));
    let mut code = ExitCode::SUCCESS;
    for id in &arguments.ids {
        let resumed = if arguments.reboot {
            Sandbox::reboot(&client, id, timeout).await
        } else {
            Sandbox::connect(&client, id, timeout).await
        };
        match resumed {
            Ok(sandbox) => show::line(sandbox.id())?,
            Err(error) => code = failed(id, &error),
        }
    }
    Ok(code)
}

pub(crate) async fn fork(arguments: ForkArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let timeout = Some(Duration::from_secs(arguments.timeout));
    let mut code = ExitCode::SUCCESS;
    for fork in Sandbox::fork_by_id(&client, &arguments.id, arguments.count, timeout).await? {
        match fork {
            Ok(sandbox) => show::line(sandbox.id())?,
            Err(error) => code = failed("a fork", &error),
        }
    }
    Ok(code)
}

pub(crate) async fn rollback(arguments: RollbackArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    Sandbox::rollback_by_id(&client, &arguments.id, &arguments.snapshot).await?;
    show::line(&arguments.id)?;
    Ok(ExitCode::SUCCESS)
}

fn failed(what: &str, error: &Error) -> ExitCode {
    eprintln!("error: {what}: {error}");
    ExitCode::FAILURE
}
