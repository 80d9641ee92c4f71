//! The MCP gateway in a sandbox of the template `mcp-gateway`: one MCP endpoint, on port 50005, for the tools, prompts and resources of many
//! servers. The servers are processes of npm and PyPI packages, or remote. The official SDKs start it with `mcp-gateway --config <json>`.
//! It does not protect itself from root in the sandbox: the sandbox is the security boundary.
#![forbid(unsafe_code)]

mod args;
mod calls;
mod catalogue;
mod check;
mod config;
mod daemon;
mod error;
mod gateway;
mod handler;
mod index;
mod install;
mod launch;
mod limits;
mod log;
mod remote;
mod routes;
mod server;
mod spawn;
mod upstream;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};
use crate::error::Error;

fn main() -> ExitCode {
    // The only provider that is compiled in, so nothing else can have been installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let done = match (args.config, args.command) {
        (Some(config), None) => daemon::start(&config),
        (None, Some(Command::Pull { names })) => {
            runtime().and_then(|runtime| runtime.block_on(install::pull(&names)))
        }
        (None, Some(Command::Check { config })) => {
            runtime().and_then(|runtime| runtime.block_on(check::run(&config)))
        }
        (None, Some(Command::List)) => check::list(),
        (None, Some(Command::Serve)) => daemon::serve(),
        _ => Err(Error::Usage),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes a runtime with one thread: the work is done by the servers.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}
