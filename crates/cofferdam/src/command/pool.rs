//! `cofferdam pool`: sandboxes that wait for their creators, for the operator.
//! Their number follows the demand unless it is set.
//! The local server's admin token is found in its data directory; another server's is named.

use std::process::ExitCode;

use clap::Subcommand;

use super::key::Operated;
use crate::access::block_on;
use crate::failure::Failure;
use crate::show;

/// What to do with the pool.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Shows what waits, what should, and how often that helped.
    List {
        #[command(flatten)]
        server: Operated,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Has sandboxes of a template wait whatever the demand.
    Set {
        #[command(flatten)]
        server: Operated,
        /// The template, with a tag if wanted.
        template: String,
        /// How many; `auto` leaves it to the demand.
        #[arg(value_parser = count)]
        ready: Count,
    },
}

/// A number, or none of one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count(Option<u64>);

fn count(text: &str) -> Result<Count, String> {
    match text {
        "auto" => Ok(Count(None)),
        text => text.parse().map(|number| Count(Some(number))).map_err(|_| "a number, or auto".to_owned()),
    }
}

pub(crate) fn run(command: PoolCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            PoolCommand::List { server, json } => list(&server, json).await,
            PoolCommand::Set { server, template, ready: Count(ready) } => {
                Ok(server.client()?.set_pool(&template, ready).await?)
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(server: &Operated, json: bool) -> Result<(), Failure> {
    let entries = server.client()?.pool().await?;
    if json {
        return show::json(&entries);
    }
    let rows: Vec<Vec<String>> = entries
        .into_iter()
        .map(|entry| {
            vec![
                if entry.names.is_empty() { entry.template_id } else { entry.names.join(", ") },
                format!("{} of {}", entry.ready, entry.wanted),
                entry.fixed.map_or_else(|| "by demand".to_owned(), |_| "set".to_owned()),
                format!("{} of {}", entry.hits, entry.hits + entry.misses),
                format!("{} MiB", entry.memory_bytes >> 20),
            ]
        })
        .collect();
    show::table(&["TEMPLATE", "READY", "NUMBER", "HITS", "MEMORY"], &rows, "nothing waits")
}
