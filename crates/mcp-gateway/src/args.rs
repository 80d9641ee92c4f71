//! The command line.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mcp-gateway", version, about = "One MCP endpoint for many MCP servers")]
pub(crate) struct Args {
    /// Starts the gateway in the background and exits when it answers: a JSON object of server names and their options.
    /// `GATEWAY_ACCESS_TOKEN` is the bearer token.
    #[arg(long)]
    pub(crate) config: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Installs servers, so that they start without network.
    Pull {
        /// Names of the catalogue.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Starts each server by itself and prints what it offers, one line of JSON for each.
    Check {
        /// As for `--config`.
        #[arg(long)]
        config: String,
    },
    /// Prints the catalogue: names, packages and options.
    List,
    /// The gateway itself; `--config` starts it.
    #[command(hide = true)]
    Serve,
}
