//! `cofferdam sandbox egress`: lists which hosts a sandbox connected to or was refused, oldest first.

use std::process::ExitCode;

use clap::Args;
use cofferdam_client::SandboxConnections;
use time::format_description::well_known::Rfc3339;

use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Whose connections to show.
#[derive(Debug, Args)]
pub(crate) struct EgressArguments {
    #[command(flatten)]
    data: DataDir,
    /// Sandbox id.
    id: String,
    /// Maximum number of lines: the newest.
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn egress(arguments: EgressArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let mut connections = client.egress(&arguments.id, arguments.limit.into()).await?;
    connections.reverse();
    if arguments.json {
        show::json(&connections)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = connections.iter().map(row).collect();
    let head = ["TIME", "HOST", "ADDRESS", "PORT", "COUNT", "SENT", "RECEIVED", "VERDICT"];
    show::table(&head, &rows, "no connections have ended")?;
    Ok(ExitCode::SUCCESS)
}

fn row(connections: &SandboxConnections) -> Vec<String> {
    let reason = connections.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    vec![
        connections.timestamp.format(&Rfc3339).unwrap_or_default(),
        // The sandbox wrote it.
        connections.host.as_deref().unwrap_or("-").escape_debug().to_string(),
        connections.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
        connections.port.to_string(),
        connections.count.to_string(),
        connections.sent_bytes.to_string(),
        connections.received_bytes.to_string(),
        format!("{}{reason}", connections.verdict).escape_debug().to_string(),
    ]
}
