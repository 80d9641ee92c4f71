//! `cofferdam docs`: the reference documents that are generated from the definitions of the command line, as Markdown.
//! Hidden from the help: `cargo xtask docs` writes its output to `docs/cli.md` and `docs/configuration.md`.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, ValueEnum};

use crate::failure::Failure;
use crate::show;

/// Which document to print.
#[derive(Debug, Args)]
pub(crate) struct DocsArguments {
    document: Document,
}

/// The generated documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Document {
    /// All commands with their arguments.
    Cli,
    /// All settings of the server: flags, environment variables, defaults.
    Configuration,
}

/// Prints one document to standard output.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn run(arguments: &DocsArguments) -> Result<ExitCode, Failure> {
    let mut command = crate::Arguments::command();
    // Fills in what clap derives only when it parses: help flags, usage lines.
    command.build();
    let text = match arguments.document {
        Document::Cli => cli(&command),
        Document::Configuration => configuration(&command),
    };
    show::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Renders all visible commands.
fn cli(command: &clap::Command) -> String {
    let mut text = String::from("# Command line\n");
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "\n## cofferdam {}\n\n{about}\n", subcommand.get_name());
    }
    text
}

/// Renders the settings of `serve`.
fn configuration(command: &clap::Command) -> String {
    let mut text = String::from("# Configuration\n\n| flag | variable | meaning |\n|---|---|---|\n");
    let Some(serve) = command.find_subcommand("serve") else { return text };
    for argument in serve.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let Some(flag) = argument.get_long() else { continue };
        let variable = argument.get_env().map(|name| name.to_string_lossy()).unwrap_or_default();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "| `--{flag}` | {variable} | {help} |");
    }
    text
}
