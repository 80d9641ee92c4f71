//! `cofferdam pool`: shows the pool of pre-started sandboxes and sets its size for a template, for the operator.
//! Without a set size, the number of a template's pre-started sandboxes follows the demand.

use std::process::ExitCode;

use clap::Subcommand;

use super::key::OperatorAccess;
use crate::access::block_on;
use crate::failure::Failure;
use crate::show;

/// What to do with the pool.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Lists templates with their numbers of pre-started sandboxes, and how many creates used one.
    List {
        #[command(flatten)]
        server: OperatorAccess,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sets the number of a template's pre-started sandboxes.
    Set {
        #[command(flatten)]
        server: OperatorAccess,
        /// Name or id of the template, optionally with a tag.
        template: String,
        /// Number of pre-started sandboxes; `auto` follows the demand.
        #[arg(value_parser = pool_size)]
        ready: PoolSize,
    },
}

/// A number, or `None` for `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolSize(Option<u64>);

fn pool_size(text: &str) -> Result<PoolSize, String> {
    match text {
        "auto" => Ok(PoolSize(None)),
        text => text.parse().map(|number| PoolSize(Some(number))).map_err(|_| "a number, or auto".to_owned()),
    }
}

pub(crate) fn run(command: PoolCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            PoolCommand::List { server, json } => list(&server, json).await,
            PoolCommand::Set { server, template, ready: PoolSize(ready) } => {
                Ok(server.client()?.set_pool(&template, ready).await?)
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(server: &OperatorAccess, json: bool) -> Result<(), Failure> {
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
                entry.fixed.map_or_else(|| "auto".to_owned(), |_| "set".to_owned()),
                format!("{} of {}", entry.hits, entry.hits + entry.misses),
                format!("{} MiB", entry.memory_bytes >> 20),
            ]
        })
        .collect();
    show::table(&["TEMPLATE", "READY", "NUMBER", "HITS", "MEMORY"], &rows, "no pre-started sandboxes")
}
