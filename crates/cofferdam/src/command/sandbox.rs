//! `cofferdam sandbox`: make, list, use and end sandboxes from the command line.
//! Server and key come from E2B's variables, or are this machine's own.
//! Ids go to standard output; words about them to standard error.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cofferdam_client::{Client, CreateOptions, ListOptions, OnTimeout, Sandbox, SandboxInfo, SandboxState};

use super::{events, exec, lifecycle, snapshot, terminal};
use crate::access::{block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// What to do with sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Makes a sandbox and prints its id.
    Create(CreateArguments),
    /// Lists sandboxes.
    List(ListArguments),
    /// Runs a command in a sandbox, with its output, its input and its exit code.
    Exec(exec::ExecArguments),
    /// Opens a terminal in a sandbox.
    Connect {
        #[command(flatten)]
        data: DataDir,
        /// The sandbox.
        id: String,
        /// Whose shell; by default the template's default user's.
        #[arg(long)]
        user: Option<String>,
    },
    /// Ends sandboxes.
    Kill(KillArguments),
    /// Puts sandboxes away, with all that runs in them, until they are resumed.
    Pause(lifecycle::PauseArguments),
    /// Lets paused sandboxes go on.
    Resume(lifecycle::ResumeArguments),
    /// Captures sandboxes as snapshots, lists and deletes those.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Makes copies of a running sandbox that go their own ways, and prints their ids.
    Fork(lifecycle::ForkArguments),
    /// Puts a running sandbox back to one of its snapshots.
    Rollback(lifecycle::RollbackArguments),
    /// Shows what happened to sandboxes, ended ones included.
    Events(events::EventsArguments),
}

/// A new sandbox.
#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    data: DataDir,
    /// Template by name or id.
    #[arg(default_value = "base")]
    template: String,
    /// Seconds it lives, unless that is changed later.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Label to find it by. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    metadata: Vec<(String, String)>,
    /// Variable of every process in it. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// What happens when its time is up.
    #[arg(long, value_enum, default_value_t)]
    on_timeout: AtTheEnd,
    /// Resume it when traffic comes to one of its ports.
    #[arg(long)]
    auto_resume: bool,
    /// Open a terminal in it at once.
    #[arg(long)]
    connect: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "connect")]
    json: bool,
}

/// Which sandboxes to list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    data: DataDir,
    /// Only those with this label. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    metadata: Vec<(String, String)>,
    /// Only those in this state. May be repeated.
    #[arg(long, value_enum)]
    state: Vec<State>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// States by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Running,
    Paused,
}

/// What a time limit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum AtTheEnd {
    /// The sandbox ends.
    #[default]
    Kill,
    /// It is paused with its memory.
    Pause,
    /// It is paused, but only its files are kept.
    PauseDisk,
}

/// Which sandboxes to end.
#[derive(Debug, Args)]
pub(crate) struct KillArguments {
    #[command(flatten)]
    data: DataDir,
    /// The sandboxes.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All sandboxes of the key's team.
    #[arg(long)]
    all: bool,
}

/// `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

pub(crate) fn run(command: SandboxCommand) -> Result<ExitCode, Failure> {
    match command {
        SandboxCommand::Create(arguments) => block_on(create(arguments)),
        SandboxCommand::List(arguments) => block_on(list(arguments)),
        SandboxCommand::Exec(arguments) => block_on(exec::exec(arguments)),
        SandboxCommand::Connect { data, id, user } => block_on(async {
            terminal::check()?;
            let client = team_client(&data)?;
            let sandbox = Sandbox::connect(&client, &id, None).await?;
            terminal::attach(&client, &sandbox, user).await
        }),
        SandboxCommand::Kill(arguments) => block_on(kill(arguments)),
        SandboxCommand::Pause(arguments) => block_on(lifecycle::pause(arguments)),
        SandboxCommand::Resume(arguments) => block_on(lifecycle::resume(arguments)),
        SandboxCommand::Snapshot(command) => block_on(snapshot::run(command)),
        SandboxCommand::Fork(arguments) => block_on(lifecycle::fork(arguments)),
        SandboxCommand::Rollback(arguments) => block_on(lifecycle::rollback(arguments)),
        SandboxCommand::Events(arguments) => block_on(events::events(arguments)),
    }
}

async fn create(arguments: CreateArguments) -> Result<ExitCode, Failure> {
    if arguments.connect {
        terminal::check()?;
    }
    let client = team_client(&arguments.data)?;
    let on_timeout = match arguments.on_timeout {
        AtTheEnd::Pause => OnTimeout::Pause { memory: true, auto_resume: arguments.auto_resume },
        // Without its memory nothing in it would serve the traffic.
        _ if arguments.auto_resume => {
            return Err(Failure::new("--auto-resume needs --on-timeout pause"));
        }
        AtTheEnd::PauseDisk => OnTimeout::Pause { memory: false, auto_resume: false },
        AtTheEnd::Kill => OnTimeout::Kill,
    };
    let options = CreateOptions {
        on_timeout,
        timeout: Duration::from_secs(arguments.timeout),
        metadata: arguments.metadata.into_iter().collect(),
        envs: arguments.env.into_iter().collect(),
        ..CreateOptions::new(arguments.template)
    };
    let sandbox = Sandbox::create(&client, options).await?;
    if arguments.json {
        show::json(&sandbox.info().await?)?;
    } else {
        show::line(sandbox.id())?;
    }
    if !arguments.connect {
        return Ok(ExitCode::SUCCESS);
    }
    let code = terminal::attach(&client, &sandbox, None).await?;
    eprintln!("the sandbox lives on until its time is up: cofferdam sandbox kill {}", sandbox.id());
    Ok(code)
}

async fn list(arguments: ListArguments) -> Result<ExitCode, Failure> {
    let states = arguments.state.iter().map(|state| match state {
        State::Running => SandboxState::Running,
        State::Paused => SandboxState::Paused,
    });
    let options =
        ListOptions { metadata: arguments.metadata.into_iter().collect(), states: states.collect() };
    let sandboxes = Sandbox::list(&team_client(&arguments.data)?, &options).await?;
    if arguments.json {
        show::json(&sandboxes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = sandboxes.iter().map(row).collect();
    let head = ["ID", "TEMPLATE", "STATE", "STARTED", "ENDS", "CPU", "MEMORY", "METADATA"];
    show::table(&head, &rows, "no sandboxes")?;
    Ok(ExitCode::SUCCESS)
}

fn row(info: &SandboxInfo) -> Vec<String> {
    let metadata: &BTreeMap<String, String> = &info.metadata;
    let labels: Vec<String> = metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
    vec![
        info.id.clone(),
        info.alias.clone().unwrap_or_else(|| info.template_id.clone()),
        info.state.as_str().to_owned(),
        show::from_now(info.started_at),
        show::from_now(info.end_at),
        info.cpu_count.to_string(),
        format!("{} MiB", info.memory_mib),
        // Whoever made the sandbox chose them: no control characters on this terminal.
        labels.join(" ").escape_debug().to_string(),
    ]
}

async fn kill(arguments: KillArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let ids = if arguments.all { all(&client).await? } else { arguments.ids };
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        if Sandbox::kill_by_id(&client, &id).await? {
            show::line(&id)?;
        } else if !arguments.all {
            // Of all, one may have ended by itself in between.
            eprintln!("error: there is no sandbox {id}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

async fn all(client: &Client) -> Result<Vec<String>, Failure> {
    let sandboxes = Sandbox::list(client, &ListOptions::default()).await?;
    Ok(sandboxes.into_iter().map(|info| info.id).collect())
}
