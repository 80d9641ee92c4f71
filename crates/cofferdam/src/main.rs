//! The `cofferdam` program: `serve` runs the platform, the other commands are clients of it or prepare this host.
//! It holds the command line and the wiring of the other crates, no rules of its own.
//! Each failure is one sentence on standard error that names the remedy, and exit code 1.
#![forbid(unsafe_code)]

mod access;
mod background;
mod budgets;
mod command;
mod configuration;
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
use configuration::ParseError;

/// Self-hosted sandboxes for AI agents, compatible with E2B's SDKs.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = configuration::parse(std::env::args_os()).unwrap_or_else(|error| match error {
        ParseError::File(failure) => stop(&failure.to_string()),
        ParseError::CommandLine(error) => match renamed::flag_message(&error) {
            Some(message) => stop(&message),
            None => error.exit(),
        },
    });
    match command::run(arguments.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Ends the program because of how it was called.
fn stop(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(2);
}
