//! The commands, one module each.
//! A module holds its arguments and a function that carries them out.
//! Commands that need a runtime start it themselves: the others are done before one would be up.

mod serve;
mod template;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the server.
    Serve(serve::ServeArguments),
    /// Builds templates on this machine.
    #[command(subcommand)]
    Template(template::TemplateCommand),
}

/// Carries a command out.
pub(crate) fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Template(command) => template::run(command),
    }
}
