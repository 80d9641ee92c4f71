//! The commands, one module each.
//! A module holds its arguments and a function that carries them out.
//! Commands that need a runtime start it themselves: the others are done before one would be up.

mod template;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Builds templates on this machine.
    #[command(subcommand)]
    Template(template::TemplateCommand),
}

/// Carries a command out.
pub(crate) fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Template(command) => template::run(command),
    }
}
