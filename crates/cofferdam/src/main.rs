//! The one binary: `serve` runs the platform, everything else is a client of it or looks after this machine.
//! Wiring only: what a command does lives in the crate it is about.
//! Every failure is one sentence on standard error that names the remedy.
#![forbid(unsafe_code)]

mod access;
mod background;
mod command;
mod database;
mod engines;
mod failure;
mod host;
mod paths;
mod progress;
mod show;

use std::process::ExitCode;

use clap::Parser;

use command::Command;

/// Self-hosted sandboxes for AI agents, compatible with E2B's SDKs.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match command::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
