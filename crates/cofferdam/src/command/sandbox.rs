//! `cofferdam sandbox`: creates, lists, uses and kills sandboxes.
//! Server and key come from E2B's environment variables, or are those of this host.
//! Ids go to standard output, messages to standard error.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cofferdam_client::{
    Client, CreateOptions, ListOptions, OnTimeout, Sandbox, SandboxInfo, SandboxState, VolumeMount,
};

use super::{egress, events, exec, lifecycle, snapshot, ssh_key, terminal};
use crate::access::{block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Commands for sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Creates a sandbox and prints its id.
    Create(CreateArguments),
    /// Lists sandboxes.
    List(ListArguments),
    /// Runs a command in a sandbox, with its output, its input and its exit code.
    Exec(exec::ExecArguments),
    /// Opens a terminal in a sandbox.
    Connect {
        #[command(flatten)]
        data: DataDir,
        /// Sandbox id.
        id: String,
        /// User whose shell is started. [default: the template's default user]
        #[arg(long)]
        user: Option<String>,
    },
    /// Kills sandboxes.
    Kill(KillArguments),
    /// Pauses sandboxes, with their memory, until they are resumed.
    Pause(lifecycle::PauseArguments),
    /// Resumes paused sandboxes.
    Resume(lifecycle::ResumeArguments),
    /// Creates, lists and deletes snapshots of sandboxes.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Creates copies of a running sandbox, with its memory, and prints their ids.
    Fork(lifecycle::ForkArguments),
    /// Restores a running sandbox to one of its snapshots.
    Rollback(lifecycle::RollbackArguments),
    /// Lists events of sandboxes, also of ended ones.
    Events(events::EventsArguments),
    /// Lists which hosts a sandbox connected to or was refused, also an ended one. Connections are listed when they have ended.
    Egress(egress::EgressArguments),
    /// Prints the line by which SSH reaches a sandbox.
    Ssh {
        #[command(flatten)]
        data: DataDir,
        /// Sandbox id.
        id: String,
    },
}

/// Arguments of `sandbox create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    data: DataDir,
    /// Name or id of the template or snapshot.
    #[arg(default_value = "base")]
    template: String,
    /// Time limit, seconds. It can be extended later.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Metadata that lists can be filtered by. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    metadata: Vec<(String, String)>,
    /// Environment variable of every process in the sandbox. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// Volume to mount, by its name, read-only with `:ro`. May be repeated.
    #[arg(long, value_parser = volume_mount, value_name = "NAME:PATH[:ro]")]
    volume: Vec<VolumeMount>,
    /// What happens at the time limit.
    #[arg(long, value_enum, default_value_t)]
    on_timeout: OnTimeoutChoice,
    /// Resume the sandbox when a request for one of its ports arrives.
    #[arg(long)]
    auto_resume: bool,
    /// Open a terminal in the sandbox.
    #[arg(long)]
    connect: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "connect")]
    json: bool,
}

/// Arguments of `sandbox list`.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    data: DataDir,
    /// Only sandboxes with this metadata. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    metadata: Vec<(String, String)>,
    /// Only sandboxes in this state. May be repeated.
    #[arg(long, value_enum)]
    state: Vec<StateChoice>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Values of `--state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateChoice {
    Running,
    Paused,
}

/// Values of `--on-timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OnTimeoutChoice {
    /// The sandbox is killed.
    #[default]
    Kill,
    /// The sandbox is paused with its memory, or without it if it cannot be captured.
    Pause,
    /// The sandbox is paused with its memory, or killed if it cannot be captured.
    PauseOrKill,
    /// The sandbox is paused without its memory.
    PauseDisk,
}

/// Arguments of `sandbox kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArguments {
    #[command(flatten)]
    data: DataDir,
    /// Sandbox ids.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Kill all sandboxes of the key's team.
    #[arg(long)]
    all: bool,
}

/// Parses `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// Parses `NAME:PATH` or `NAME:PATH:ro`.
fn volume_mount(text: &str) -> Result<VolumeMount, String> {
    let (name, path) = text.split_once(':').ok_or("must be NAME:PATH or NAME:PATH:ro")?;
    let (path, read_only) = path.strip_suffix(":ro").map_or((path, false), |path| (path, true));
    Ok(VolumeMount { name: name.to_owned(), path: path.to_owned(), read_only, sub_path: None })
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
        SandboxCommand::Ssh { data, id } => ssh_key::line(&data, &id),
        SandboxCommand::Egress(arguments) => block_on(egress::egress(arguments)),
    }
}

async fn create(arguments: CreateArguments) -> Result<ExitCode, Failure> {
    if arguments.connect {
        terminal::check()?;
    }
    let client = team_client(&arguments.data)?;
    let on_timeout = match arguments.on_timeout {
        OnTimeoutChoice::Pause => {
            OnTimeout::Pause { memory: true, auto_resume: arguments.auto_resume, or_kill: false }
        }
        OnTimeoutChoice::PauseOrKill => {
            OnTimeout::Pause { memory: true, auto_resume: arguments.auto_resume, or_kill: true }
        }
        // Without its memory no process in it would answer the request.
        _ if arguments.auto_resume => {
            return Err(Failure::new("--auto-resume needs --on-timeout pause or pause-or-kill"));
        }
        OnTimeoutChoice::PauseDisk => OnTimeout::Pause { memory: false, auto_resume: false, or_kill: false },
        OnTimeoutChoice::Kill => OnTimeout::Kill,
    };
    let options = CreateOptions {
        volumes: arguments.volume,
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
    eprintln!("the sandbox runs until its time limit; to kill it: cofferdam sandbox kill {}", sandbox.id());
    Ok(code)
}

async fn list(arguments: ListArguments) -> Result<ExitCode, Failure> {
    let states = arguments.state.iter().map(|state| match state {
        StateChoice::Running => SandboxState::Running,
        StateChoice::Paused => SandboxState::Paused,
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
        // Untrusted text: escape control characters for the terminal.
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
            // With --all, a sandbox may have ended between the list and the kill.
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
