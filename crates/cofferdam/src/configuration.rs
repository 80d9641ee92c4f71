//! The configuration file: every flag of `serve` may stand in it, under its name without the dashes in front. A flag on the command line
//! wins over an environment variable, and both over the file. Its values become words of the command line that were not given there, so
//! a new flag can be in the file without further code, and values are checked in one place.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::Arguments;
use crate::failure::Failure;

/// The file that is read when there is one and no other is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/cofferdam/cofferdam.toml";
/// The command whose flags may be in the file.
const SERVE: &str = "serve";
/// The flag that names another file.
const FILE_FLAG: &str = "config";
/// The one setting of the file that other commands need as well: they find the server by it.
const SHARED: &str = "data-dir";

/// Why a command line and its file cannot be used.
#[derive(Debug)]
pub(crate) enum ParseError {
    /// The command line is wrong, or asks for help.
    CommandLine(clap::Error),
    /// The file is wrong.
    File(Failure),
}

/// Parses a command line together with the configuration file.
///
/// # Errors
/// See [`ParseError`].
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, ParseError> {
    let words: Vec<OsString> = words.into_iter().collect();
    let matches = matches(&words)?;
    Arguments::from_arg_matches(&matches).map_err(ParseError::CommandLine)
}

/// Returns the settings of `serve` that a command line and its file give, with the file that was read.
///
/// # Errors
/// See [`ParseError`].
pub(crate) fn settings(words: &[OsString]) -> Result<(Vec<Setting>, Option<PathBuf>), ParseError> {
    let matches = matches(words)?;
    let file = file_of(&tolerant(words));
    let command = Arguments::command();
    let serve = command.find_subcommand(SERVE).expect("the server's command exists");
    let given = tolerant(words);
    let (Some(merged), Some(given)) = (matches.subcommand_matches(SERVE), given.subcommand_matches(SERVE))
    else {
        return Ok((Vec::new(), file));
    };
    let in_file = |name: &str| is_open(given, serve, name) && merged_from_words(merged, serve, name);
    let settings = serve.get_arguments().filter_map(|argument| {
        let name = argument.get_long().filter(|name| is_setting(name))?;
        let source = match given.value_source(argument.get_id().as_str()) {
            _ if in_file(name) => Source::File,
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => Source::Variable,
            _ => Source::Default,
        };
        let raw = merged.get_raw(argument.get_id().as_str());
        let values = raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        Some(Setting { name: name.to_owned(), values, source, is_secret: argument.is_hide_env_values_set() })
    });
    Ok((settings.collect(), file))
}

/// One setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Name of the flag.
    pub(crate) name: String,
    /// Its values as written; none if it is not set.
    pub(crate) values: Vec<String>,
    /// Where they come from.
    pub(crate) source: Source,
    /// Whether they are not to be shown.
    pub(crate) is_secret: bool,
}

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Variable,
    File,
    Default,
}

/// Parses with the words that the file adds.
fn matches(words: &[OsString]) -> Result<ArgMatches, ParseError> {
    let added = added_words(words)?;
    let all = words.iter().cloned().chain(added.iter().cloned());
    Arguments::command().try_get_matches_from(all).map_err(|error| {
        let is_help = !error.use_stderr();
        let is_by_file = !added.is_empty() && Arguments::command().try_get_matches_from(words).is_ok();
        if is_help || !is_by_file {
            return ParseError::CommandLine(error);
        }
        let file = file_of(&tolerant(words)).unwrap_or_default();
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ParseError::File(Failure::new(format!("{}: {reason}", file.display())))
    })
}

/// Returns the words for what the file sets and the command line and the environment do not.
fn added_words(words: &[OsString]) -> Result<Vec<OsString>, ParseError> {
    let given = tolerant(words);
    let command = Arguments::command();
    let (leaf, leaf_matches) = leaf(&command, &given);
    let Some(file) = file_of(&given) else { return Ok(Vec::new()) };
    if leaf.get_name() == SERVE {
        let table = read(&file).map_err(ParseError::File)?;
        return words_of(&table, leaf, leaf_matches)
            .map_err(|reason| ParseError::File(Failure::new(format!("{}: {reason}", file.display()))));
    }
    // Whoever may not read the file, or finds it damaged, is told so by `serve` and `config check`, not by each command.
    let shared = read(&file).ok().and_then(|mut table| table.remove(SHARED));
    let table: Table = shared.into_iter().map(|value| (SHARED.to_owned(), value)).collect();
    Ok(words_of(&table, leaf, leaf_matches).unwrap_or_default())
}

/// The settings of a file as words. Keys that `leaf` has no flag for are an error.
fn words_of(table: &Table, leaf: &Command, given: &ArgMatches) -> Result<Vec<OsString>, String> {
    let mut words = Vec::new();
    for (name, value) in table {
        let argument = leaf.get_arguments().find(|argument| argument.get_long() == Some(name));
        let Some(argument) = argument.filter(|_| is_setting(name)) else {
            return Err(unknown(name, leaf));
        };
        if !is_open(given, leaf, name) {
            continue;
        }
        words.extend(words_for(argument.get_action(), name, value)?);
    }
    Ok(words)
}

/// One setting as words.
fn words_for(action: &ArgAction, name: &str, value: &Value) -> Result<Vec<OsString>, String> {
    match (action, value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![format!("--{name}").into()]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("{name} must be true or false")),
        (ArgAction::Append, Value::Array(values)) => values.iter().map(|value| word(name, value)).collect(),
        _ => Ok(vec![word(name, value)?]),
    }
}

fn word(name: &str, value: &Value) -> Result<OsString, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Array(_) => return Err(format!("{name} takes one value, no list")),
        Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => {
            return Err(format!("{name} must be a text or a number"));
        }
    };
    Ok(format!("--{name}={text}").into())
}

fn unknown(name: &str, command: &Command) -> String {
    let names =
        command.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| is_setting(name));
    let nearest =
        names.map(|known| (strsim::jaro(known, name), known)).max_by(|one, other| one.0.total_cmp(&other.0));
    let hint =
        nearest.filter(|(likeness, _)| *likeness > 0.7).map(|(_, known)| format!("; did you mean {known}?"));
    format!("there is no setting {name}{}", hint.unwrap_or_default())
}

/// Whether a flag may stand in the file.
fn is_setting(name: &str) -> bool {
    !matches!(name, FILE_FLAG | "help" | "version")
}

/// Whether neither the command line nor the environment has set a flag.
fn is_open(given: &ArgMatches, command: &Command, name: &str) -> bool {
    let argument = command.get_arguments().find(|argument| argument.get_long() == Some(name));
    let source = argument.and_then(|argument| given.value_source(argument.get_id().as_str()));
    !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn merged_from_words(merged: &ArgMatches, command: &Command, name: &str) -> bool {
    let argument = command.get_arguments().find(|argument| argument.get_long() == Some(name));
    let source = argument.and_then(|argument| merged.value_source(argument.get_id().as_str()));
    source == Some(ValueSource::CommandLine)
}

/// Parses what can be parsed of a command line, to see which flags are given: what is missing may be in the file.
fn tolerant(words: &[OsString]) -> ArgMatches {
    let command = Arguments::command().ignore_errors(true);
    command.try_get_matches_from(words).unwrap_or_default()
}

/// The innermost command of a command line.
fn leaf<'parsed>(
    command: &'parsed Command,
    matches: &'parsed ArgMatches,
) -> (&'parsed Command, &'parsed ArgMatches) {
    match matches.subcommand() {
        Some((name, inner)) => match command.find_subcommand(name) {
            Some(command) => leaf(command, inner),
            None => (command, matches),
        },
        None => (command, matches),
    }
}

/// The file that a command line names, or else the default one if it exists.
fn file_of(given: &ArgMatches) -> Option<PathBuf> {
    let named = given.subcommand_matches(SERVE).and_then(|serve| serve.get_raw(FILE_FLAG)?.next());
    let named = named.map(PathBuf::from).or_else(|| std::env::var_os("COFFERDAM_CONFIG").map(PathBuf::from));
    match named {
        Some(file) if file.as_os_str() == "none" => None,
        Some(file) => Some(file),
        None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()),
    }
}

fn read(file: &Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(format!("{}: {error}; name another file with --config", file.display()))
    })?;
    text.parse().map_err(|error: toml::de::Error| Failure::new(format!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, words: &[&str]) -> Result<Vec<Setting>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        let config = format!("--config={}", file.path().display());
        let words: Vec<OsString> =
            ["cofferdam", "serve", &config].iter().chain(words).map(|word| OsString::from(*word)).collect();
        match settings(&words) {
            Ok((settings, read)) => {
                assert_eq!(read.as_deref(), Some(file.path()));
                Ok(settings)
            }
            Err(ParseError::File(failure)) => {
                Err(failure.to_string().replace(&file.path().display().to_string(), "FILE"))
            }
            Err(ParseError::CommandLine(error)) => Err(error.to_string()),
        }
    }

    fn setting(settings: &[Setting], name: &str) -> (Vec<String>, Source) {
        let found = settings.iter().find(|setting| setting.name == name).unwrap();
        (found.values.clone(), found.source)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let text = "pool = 3\nlog = 'debug'\nlog-json = true\negress-deny = ['10.0.0.0/8', 'a.example']\nmax-connections = 100";
        let settings = with(text, &["--log", "warn"]).unwrap();
        assert_eq!(setting(&settings, "pool"), (vec!["3".to_owned()], Source::File));
        assert_eq!(setting(&settings, "log"), (vec!["warn".to_owned()], Source::Flag));
        assert_eq!(setting(&settings, "log-json"), (vec!["true".to_owned()], Source::File));
        assert_eq!(setting(&settings, "egress-deny").0, ["10.0.0.0/8", "a.example"]);
        assert_eq!(setting(&settings, "pool-memory"), (vec!["2048".to_owned()], Source::Default));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        for (text, message) in [
            ("poool = 3", "FILE: there is no setting poool; did you mean pool?"),
            ("zzz = 3", "FILE: there is no setting zzz"),
            ("config = 'x'", "FILE: there is no setting config"),
            (
                "pool = 'many'",
                "FILE: invalid value 'many' for '--pool <COUNT>': invalid digit found in string",
            ),
            ("pool = [1, 2]", "FILE: pool takes one value, no list"),
            ("pool = true", "FILE: pool must be a text or a number"),
            ("log-json = 1", "FILE: log-json must be true or false"),
            ("tls-cert = 'a'", "FILE: the following required arguments were not provided:"),
        ] {
            assert_eq!(with(text, &[]).unwrap_err(), message);
        }
        assert!(with("pool = ", &[]).unwrap_err().contains("FILE: TOML parse error at line 1"));
        assert!(with("pool = 3", &["--poool", "4"]).unwrap_err().contains("unexpected argument '--poool'"));
    }

    #[test]
    fn a_command_line_may_need_what_is_in_the_file() {
        let settings =
            with("tls-key = 'key.pem'\ndomain = 'example.org'", &["--tls-cert", "cert.pem"]).unwrap();
        assert_eq!(setting(&settings, "tls-cert"), (vec!["cert.pem".to_owned()], Source::Flag));
        assert_eq!(setting(&settings, "tls-key"), (vec!["key.pem".to_owned()], Source::File));
    }

    #[test]
    fn every_flag_of_the_server_may_be_in_the_file() {
        let command = Arguments::command();
        let serve = command.find_subcommand(SERVE).unwrap();
        for argument in serve.get_arguments().filter(|argument| argument.get_long().is_some_and(is_setting)) {
            let name = argument.get_long().unwrap();
            let value = match argument.get_action() {
                ArgAction::SetTrue => Value::Boolean(true),
                ArgAction::Append => Value::Array(vec![Value::Integer(1)]),
                ArgAction::Set => Value::Integer(1),
                other => panic!("--{name}: {other:?} has no form in the file"),
            };
            let words = words_for(argument.get_action(), name, &value).unwrap();
            assert!(words[0].to_string_lossy().starts_with(&format!("--{name}")), "{words:?}");
        }
    }
}
