//! `cofferdam team`: teams and what they may use, for the operator.
//! The local server's admin token is found in its data directory; another server's is named.
//! A limit of 0 is no limit.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::{Client, TeamDetails, TeamSettings};

use super::key::Operated;
use super::limits::Limits;
use crate::access::block_on;
use crate::failure::Failure;
use crate::show;

/// What to do with teams.
#[derive(Debug, Subcommand)]
pub(crate) enum TeamCommand {
    /// Makes a team and prints its id.
    Create {
        #[command(flatten)]
        server: Operated,
        /// Its name.
        name: String,
        /// Its namespace in template names; made from the name if not given.
        #[arg(long)]
        slug: Option<String>,
        #[command(flatten)]
        limits: Limits,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists teams with their limits.
    List {
        #[command(flatten)]
        server: Operated,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Changes a team's name, limits or standing.
    Update {
        #[command(flatten)]
        server: Operated,
        /// The team's id, from `team list`.
        id: String,
        /// New name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        standing: Standing,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ends all running sandboxes of a team.
    Kill {
        #[command(flatten)]
        server: Operated,
        /// The team's id, from `team list`.
        id: String,
    },
}

/// Whether a team may do things.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Standing {
    /// Let it only look and delete, for this reason.
    #[arg(long, value_name = "REASON")]
    block: Option<String>,
    /// Let it do nothing.
    #[arg(long)]
    ban: bool,
    /// Let it do everything again.
    #[arg(long)]
    admit: bool,
}

pub(crate) fn run(command: TeamCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            TeamCommand::Create { server, name, slug, limits, json } => {
                let settings =
                    TeamSettings { name: Some(name), slug, limits: limits.into(), ..TeamSettings::default() };
                let team = server.client()?.create_team(&settings).await?;
                if json { show::json(&team) } else { show::line(&team.id) }
            }
            TeamCommand::List { server, json } => list(&server.client()?, json).await,
            TeamCommand::Update { server, id, name, limits, standing, json } => {
                let settings = settings(name, limits, standing);
                let team = server.client()?.update_team(&id, &settings).await?;
                if json { show::json(&team) } else { table(&[team]) }
            }
            TeamCommand::Kill { server, id } => {
                let count = server.client()?.kill_sandboxes_of(&id).await?;
                if count.failed_count > 0 {
                    return Err(Failure::new(format!(
                        "{} sandboxes were ended, {} not wholly: the server's log says why",
                        count.killed_count, count.failed_count
                    )));
                }
                show::line(&format!("{} sandboxes were ended", count.killed_count))
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn settings(name: Option<String>, limits: Limits, standing: Standing) -> TeamSettings {
    let change = standing.ban || standing.admit || standing.block.is_some();
    TeamSettings {
        name,
        slug: None,
        limits: limits.into(),
        banned: change.then_some(standing.ban),
        blocked: change.then_some(standing.block.is_some()),
        blocked_reason: standing.block,
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let teams = client.team_details().await?;
    if json { show::json(&teams) } else { table(&teams) }
}

fn table(teams: &[TeamDetails]) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = teams.iter().map(row).collect();
    let head = [
        "ID",
        "NAME",
        "SLUG",
        "STANDING",
        "RUNNING",
        "SANDBOXES",
        "HOURS",
        "CPU",
        "MEMORY",
        "DISK",
        "BUILDS",
    ];
    show::table(&head, &rows, "no teams")
}

fn row(team: &TeamDetails) -> Vec<String> {
    let standing = match (&team.blocked_reason, team.banned) {
        (_, true) => "banned".to_owned(),
        (Some(reason), _) => format!("blocked: {reason}").trim_end_matches(": ").to_owned(),
        (None, false) => "good".to_owned(),
    };
    let limits = &team.limits;
    let limit = |limit: Option<u32>| match limit {
        None | Some(0) => "-".to_owned(),
        Some(limit) => limit.to_string(),
    };
    vec![
        team.id.clone(),
        team.name.escape_debug().to_string(),
        team.slug.clone(),
        standing.escape_debug().to_string(),
        team.running_sandboxes.to_string(),
        limit(limits.concurrent_sandboxes),
        limit(limits.max_length_hours),
        limit(limits.max_vcpu),
        limit(limits.max_memory_mib),
        limit(limits.max_disk_mib),
        limit(limits.concurrent_builds),
    ]
}
