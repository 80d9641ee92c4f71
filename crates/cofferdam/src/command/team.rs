//! `cofferdam team`: creates, shows, lists and changes teams, for the operator.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::{Client, TeamDetails, TeamEgress, TeamSettings};

use super::key::OperatorAccess;
use super::limits::Limits;
use crate::access::block_on;
use crate::failure::Failure;
use crate::show;

/// Commands for teams.
#[derive(Debug, Subcommand)]
pub(crate) enum TeamCommand {
    /// Creates a team and prints its id.
    Create {
        #[command(flatten)]
        server: OperatorAccess,
        /// Name of the team.
        name: String,
        /// Namespace of the team's templates. [default: made from the name]
        #[arg(long)]
        slug: Option<String>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        egress: Egress,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows a team with its limits and where its sandboxes may connect to.
    Show {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists teams with their limits.
    List {
        #[command(flatten)]
        server: OperatorAccess,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Changes a team's name or limits, or blocks, bans or admits it.
    Update {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`.
        id: String,
        /// New name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        egress: Egress,
        #[command(flatten)]
        standing: Standing,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Kills all running sandboxes of a team.
    Kill {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`.
        id: String,
    },
}

/// Options that restrict where a team's sandboxes may connect to, those that run included. They hold besides those of `serve`.
#[derive(Debug, Args)]
pub(crate) struct Egress {
    /// Networks, addresses and host names (`*.example.com` is all below it) that sandboxes of the team may not connect to, with commas
    /// between them; `none` removes the list.
    #[arg(long, value_name = "LIST|none")]
    egress_deny: Option<String>,
    /// Networks, addresses and host names that are all that sandboxes of the team may connect to, with commas between them; `none` removes
    /// the list.
    #[arg(long, value_name = "LIST|none")]
    egress_allow_only: Option<String>,
}

impl From<Egress> for TeamEgress {
    fn from(egress: Egress) -> Self {
        let list = |text: String| match text.as_str() {
            "none" => Vec::new(),
            list => list.split(',').map(|entry| entry.trim().to_owned()).collect(),
        };
        Self { deny: egress.egress_deny.map(list), allow_only: egress.egress_allow_only.map(list) }
    }
}

/// Options that restrict a team's requests.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Standing {
    /// Allow the team only to read and delete, and give this reason in refusals.
    #[arg(long, value_name = "REASON")]
    block: Option<String>,
    /// Refuse all requests of the team.
    #[arg(long)]
    ban: bool,
    /// Allow all requests again, after --block or --ban.
    #[arg(long)]
    admit: bool,
}

pub(crate) fn run(command: TeamCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            TeamCommand::Create { server, name, slug, limits, egress, json } => {
                let (limits, egress) = (limits.into(), egress.into());
                let settings =
                    TeamSettings { name: Some(name), slug, limits, egress, ..TeamSettings::default() };
                let team = server.client()?.create_team(&settings).await?;
                if json { show::json(&team) } else { show::line(&team.id) }
            }
            TeamCommand::List { server, json } => list(&server.client()?, json).await,
            TeamCommand::Show { server, id, json } => {
                let team = server.client()?.team(&id).await?;
                if json { show::json(&team) } else { show::line(&description(&team)) }
            }
            TeamCommand::Update { server, id, name, limits, egress, standing, json } => {
                let settings = TeamSettings { egress: egress.into(), ..settings(name, limits, standing) };
                let team = server.client()?.update_team(&id, &settings).await?;
                if json { show::json(&team) } else { table(&[team]) }
            }
            TeamCommand::Kill { server, id } => {
                let count = server.client()?.kill_sandboxes_of(&id).await?;
                if count.failed_count > 0 {
                    return Err(Failure::new(format!(
                        "{} sandboxes were killed, {} could not be: the server's log has the reasons",
                        count.killed_count, count.failed_count
                    )));
                }
                show::line(&format!("{} sandboxes were killed", count.killed_count))
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
        ..TeamSettings::default()
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let teams = client.team_details().await?;
    if json { show::json(&teams) } else { table(&teams) }
}

fn table(teams: &[TeamDetails]) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = teams.iter().map(row).collect();
    show::table(&HEAD, &rows, "no teams")
}

/// Names of what [`row`] returns.
const HEAD: [&str; 11] =
    ["ID", "NAME", "SLUG", "STANDING", "RUNNING", "SANDBOXES", "HOURS", "CPU", "MEMORY", "DISK", "BUILDS"];

/// Returns a line for each property.
fn description(team: &TeamDetails) -> String {
    let mut lines: Vec<(&str, String)> = HEAD.into_iter().zip(row(team)).collect();
    let mut list = |name, entries: &Option<Vec<String>>, none: &str| {
        let entries = entries.as_ref().filter(|entries| !entries.is_empty());
        lines.push((name, entries.map_or_else(|| none.to_owned(), |entries| entries.join(", "))));
    };
    list("DENIED", &team.egress.deny, "-");
    list("ALLOWED ONLY", &team.egress.allow_only, "-");
    list("DENIED TO ALL TEAMS", &team.egress_of_all_teams.deny, "-");
    list("ALLOWED ONLY TO ALL TEAMS", &team.egress_of_all_teams.allow_only, "-");
    lines.iter().map(|(name, value)| format!("{name:<25}  {value}")).collect::<Vec<_>>().join("\n")
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
