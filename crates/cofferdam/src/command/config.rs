//! `cofferdam config`: checks the configuration file of `serve`, and shows what is in force.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::configuration::{self, ParseError, Setting, Source};
use crate::failure::Failure;
use crate::show;

/// Commands about the configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks the file: unknown settings, and values that `serve` would refuse.
    Check(FileArguments),
    /// Shows each setting with its value and where it comes from. Values with passwords are not shown.
    Show(FileArguments),
}

/// The file to look at.
#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// File of settings. [default: /etc/cofferdam/cofferdam.toml, if there is one]
    #[arg(env = "COFFERDAM_CONFIG", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// The file cannot be read, or is wrong.
pub(crate) fn run(command: ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Check(arguments) => {
            let (settings, file) = settings(arguments.file)?;
            let Some(file) = file else {
                return Err(Failure::new(format!("there is no {}", configuration::DEFAULT_FILE)));
            };
            let count = settings.iter().filter(|setting| setting.source == Source::File).count();
            show::line(&format!("{}: {count} settings, all correct", file.display()))?;
        }
        ConfigCommand::Show(arguments) => {
            let (settings, file) = settings(arguments.file)?;
            for setting in &settings {
                show::line(&row(setting, file.as_deref().unwrap_or("the file".as_ref())))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `serve` would run with.
fn settings(file: Option<PathBuf>) -> Result<(Vec<Setting>, Option<PathBuf>), Failure> {
    let mut words: Vec<OsString> = vec!["cofferdam".into(), "serve".into()];
    if let Some(file) = file {
        words.extend(["--config".into(), file.into()]);
    }
    configuration::settings(&words).map_err(|error| match error {
        ParseError::File(failure) => failure,
        ParseError::CommandLine(error) => {
            Failure::new(error.to_string().trim_start_matches("error: ").trim())
        }
    })
}

fn row(setting: &Setting, file: &std::path::Path) -> String {
    let value = match &setting.values[..] {
        [] => "(not set)".to_owned(),
        _ if setting.is_secret => "(not shown)".to_owned(),
        values => values.join(", "),
    };
    let source = match setting.source {
        Source::Flag | Source::Default => return format!("{} = {value}", setting.name),
        Source::Variable => "environment".to_owned(),
        Source::File => file.display().to_string(),
    };
    format!("{} = {value}    # {source}", setting.name)
}
