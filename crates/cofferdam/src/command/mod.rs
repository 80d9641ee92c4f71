//! The commands, one module each.
//! A module holds its arguments and a function that carries them out.
//! Commands that need a runtime start it themselves: the others are done before one would be up.

mod completions;
mod doctor;
mod events;
mod exec;
mod key;
mod lifecycle;
mod limits;
mod pool;
mod quickstart;
mod sandbox;
mod serve;
mod setup;
mod snapshot;
mod team;
mod template;
mod terminal;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the server.
    Serve(Box<serve::ServeArguments>),
    /// Builds what is missing, starts a server in the background and runs a first sandbox.
    Quickstart(quickstart::QuickstartArguments),
    /// Checks whether this machine can run sandboxes, and says what to do where it cannot.
    Doctor(doctor::DoctorArguments),
    /// Makes, lists and deletes API keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Makes, lists, limits and stops teams.
    #[command(subcommand)]
    Team(team::TeamCommand),
    /// Makes, lists, uses and ends sandboxes.
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Builds, lists, publishes, moves and deletes templates.
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Shows and sets how many sandboxes wait for their creators.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Brings programs that the server runs into its own directories.
    #[command(subcommand)]
    Setup(setup::SetupCommand),
    /// Prints a shell's completions.
    Completions(completions::CompletionsArguments),
}

/// Carries a command out.
pub(crate) fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Quickstart(arguments) => quickstart::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Key(command) => key::run(command),
        Command::Team(command) => team::run(command),
        Command::Sandbox(command) => sandbox::run(command),
        Command::Template(command) => template::run(command),
        Command::Pool(command) => pool::run(command),
        Command::Setup(command) => setup::run(&command),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}
