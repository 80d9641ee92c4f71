//! The `cofferdam` program: `serve` runs the platform, the other commands are clients of it or prepare this host.
//! It holds the command line and the wiring of the other crates, no rules of its own.
//! Each failure is one sentence on standard error that names the remedy, and exit code 1.
#![forbid(unsafe_code)]

mod access;
mod background;
mod budgets;
mod command;
mod database;
mod engines;
mod failure;
mod host;
mod paths;
mod progress;
mod renamed;
mod show;
mod tls;

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
    let arguments = Arguments::try_parse().unwrap_or_else(|error| match renamed::flag_message(&error) {
        Some(message) => {
            eprintln!("error: {message}");
            std::process::exit(2);
        }
        None => error.exit(),
    });
    match command::run(arguments.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
