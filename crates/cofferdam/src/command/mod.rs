//! The commands, one module each: its arguments and the function that runs it.
//! Commands that need an asynchronous runtime start it themselves, because starting one takes longer than the others run.

mod completions;
mod config;
mod docs;
mod doctor;
mod egress;
mod events;
mod exam;
mod exec;
mod key;
mod lifecycle;
mod limits;
mod pool;
mod quickstart;
mod resource_files;
mod sandbox;
mod secret;
mod serve;
mod setup;
mod snapshot;
mod ssh_key;
mod system;
mod team;
mod template;
mod terminal;
mod tls;
mod volume;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;
use crate::renamed::refuse_old_variables;

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the server.
    Serve(Box<serve::ServeArguments>),
    /// Checks the server's configuration file, and shows the settings in force.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Builds what is missing, starts a server in the background and runs a first sandbox.
    Quickstart(quickstart::QuickstartArguments),
    /// Checks whether this host can run sandboxes, and names the remedy for each fault.
    Doctor(doctor::DoctorArguments),
    /// Attacks this host from inside a sandbox, and reports what got through.
    Exam(exam::ExamArguments),
    /// Creates, lists and deletes API keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Creates, lists and changes teams: their limits, and whether they may call the API.
    #[command(subcommand)]
    Team(team::TeamCommand),
    /// Creates, lists, uses and kills sandboxes.
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Sets, lists and deletes secrets, which header rules of sandboxes refer to.
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Shows what the server's files take on the disk, and removes what nothing uses.
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Adds, lists and deletes public keys of SSH clients (`serve --ssh-listen`).
    #[command(subcommand)]
    SshKey(ssh_key::SshKeyCommand),
    /// Builds, lists, publishes, exports, imports and deletes templates.
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Creates, lists, copies and deletes volumes, and copies files to and from them.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Shows the pool of pre-started sandboxes and sets its size for a template.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Downloads programs that the server runs (CRIU, QEMU) into directories of their own.
    #[command(subcommand)]
    Setup(setup::SetupCommand),
    /// The server's own certificate authorities: that of `serve --tls self-signed`, and that which sandboxes trust.
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Prints the completion script for a shell.
    Completions(completions::CompletionsArguments),
    /// Serves the files in which containers see their own size. Started by `serve`.
    #[command(hide = true)]
    ResourceFiles(resource_files::ResourceFilesArguments),
    /// Prints a generated reference document as Markdown.
    #[command(hide = true)]
    Docs(docs::DocsArguments),
}

/// Runs a command and returns the program's exit code.
///
/// # Errors
/// The command failed; the message is for the terminal.
pub(crate) fn run(command: Command) -> Result<ExitCode, Failure> {
    refuse_old_variables()?;
    match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Config(command) => config::run(command),
        Command::Quickstart(arguments) => quickstart::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Exam(arguments) => exam::run(&arguments),
        Command::Key(command) => key::run(command),
        Command::Team(command) => team::run(command),
        Command::Sandbox(command) => sandbox::run(command),
        Command::Secret(command) => secret::run(command),
        Command::System(command) => system::run(command),
        Command::SshKey(command) => ssh_key::run(command),
        Command::Template(command) => template::run(command),
        Command::Volume(command) => volume::run(command),
        Command::Pool(command) => pool::run(command),
        Command::Setup(command) => setup::run(&command),
        Command::Tls(command) => tls::run(&command),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::ResourceFiles(arguments) => resource_files::run(arguments),
        Command::Docs(arguments) => docs::run(&arguments),
    }
}
