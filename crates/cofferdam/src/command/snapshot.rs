//! `cofferdam sandbox snapshot`: creates, lists and deletes snapshots, which outlive their sandbox.
//! `cofferdam sandbox create <snapshot>` starts a sandbox from one; `cofferdam sandbox rollback` restores one.
//! Ids go to standard output, messages to standard error.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::{Sandbox, Snapshot, SnapshotFilter, SnapshotOptions};

use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Takes a snapshot of a running sandbox, which continues, and prints the snapshot's id.
    Create(CreateArguments),
    /// Lists snapshots, newest first.
    List(ListArguments),
    /// Deletes snapshots. Sandboxes that were started from them continue.
    Delete {
        #[command(flatten)]
        data: DataDir,
        /// Ids or names of the snapshots.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
}

/// A new snapshot.
#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    data: DataDir,
    /// Id of the running sandbox.
    id: String,
    /// Name of the snapshot, optionally with a tag. A snapshot that has this name and tag loses them.
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Capture files without memory: sandboxes start from it as after a reboot.
    #[arg(long)]
    disk_only: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Which snapshots to list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    data: DataDir,
    /// Only snapshots of this sandbox.
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Only snapshots with this name.
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: SnapshotCommand) -> Result<ExitCode, Failure> {
    match command {
        SnapshotCommand::Create(arguments) => create(arguments).await,
        SnapshotCommand::List(arguments) => list(arguments).await,
        SnapshotCommand::Delete { data, snapshots } => delete(&data, &snapshots).await,
    }
}

async fn create(arguments: CreateArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let options = SnapshotOptions { name: arguments.name, memory: !arguments.disk_only };
    let snapshot = Sandbox::snapshot_by_id(&client, &arguments.id, &options).await?;
    if arguments.json {
        show::json(&snapshot)?;
    } else {
        show::line(&snapshot.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(arguments: ListArguments) -> Result<ExitCode, Failure> {
    let filter = SnapshotFilter { sandbox: arguments.sandbox, name: arguments.name };
    let snapshots = team_client(&arguments.data)?.list_snapshots(&filter).await?;
    if arguments.json {
        show::json(&snapshots)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |snapshot: &Snapshot| vec![snapshot.id.clone(), snapshot.names.join(" ")];
    let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
    show::table(&["ID", "NAMES"], &rows, "no snapshots")?;
    Ok(ExitCode::SUCCESS)
}

async fn delete(data: &DataDir, snapshots: &[String]) -> Result<ExitCode, Failure> {
    let client = team_client(data)?;
    let mut code = ExitCode::SUCCESS;
    for snapshot in snapshots {
        if client.delete_snapshot(snapshot).await? {
            show::line(snapshot)?;
        } else {
            eprintln!("error: there is no snapshot {snapshot}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
