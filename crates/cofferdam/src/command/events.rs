//! `cofferdam sandbox events`: lists events of a sandbox or of all sandboxes of the team, oldest first.
//! Events of ended sandboxes are kept for some days.

use std::process::ExitCode;

use clap::Args;
use cofferdam_client::SandboxEvent;
use time::format_description::well_known::Rfc3339;

use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Which events to show.
#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    #[command(flatten)]
    data: DataDir,
    /// Sandbox id. [default: all sandboxes of the team]
    id: Option<String>,
    /// Maximum number of events: the newest.
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn events(arguments: EventsArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let mut events = client.events(arguments.id.as_deref(), arguments.limit).await?;
    events.reverse();
    if arguments.json {
        show::json(&events)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = events.iter().map(row).collect();
    show::table(&["TIME", "SANDBOX", "EVENT", "DETAILS"], &rows, "no events")?;
    Ok(ExitCode::SUCCESS)
}

fn row(event: &SandboxEvent) -> Vec<String> {
    let kind = event.kind.strip_prefix("sandbox.lifecycle.").unwrap_or(&event.kind);
    let details = ["kill_reason", "set_timeout", "network_egress"].iter().filter_map(|name| {
        let value = event.event_data.get(name)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    });
    vec![
        event.timestamp.format(&Rfc3339).unwrap_or_default(),
        event.sandbox_id.clone(),
        kind.to_owned(),
        // Network rules are untrusted text: escape control characters for the terminal.
        details.collect::<Vec<_>>().join(" ").escape_debug().to_string(),
    ]
}
