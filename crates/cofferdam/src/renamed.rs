//! Flags and environment variables that were renamed before the first release: `--warm` is now `--pool`, for example.
//! An old spelling is refused with the new one in the message, so that a start-up script fails where it must be changed.
//! `--pool` itself had another meaning (now `--slots`), which cannot be detected: its help says so.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::Failure;

/// Old and new spellings of flags.
const FLAGS: [(&str, &str); 8] = [
    ("--warm", "--pool"),
    ("--warm-memory", "--pool-memory"),
    ("--hot-pause", "--keep-frozen"),
    ("--most-hot", "--keep-frozen-max"),
    ("--volumes", "--storage"),
    ("--volumes-size", "--storage-size"),
    ("--machine", "--machine-type"),
    ("--criu-patience", "--criu-timeout"),
];

/// Old and new names of environment variables.
const VARIABLES: [(&str, &str); 1] = [("COFFERDAM_MACHINE", "COFFERDAM_MACHINE_TYPE")];

/// Returns the message for a parse error that an old spelling of a flag caused, and `None` for any other error.
pub(crate) fn flag_message(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let (old, new) = FLAGS.into_iter().find(|(old, _)| argument == old)?;
    Some(format!("{old} is now {new}"))
}

/// Refuses environment variables under their old names.
///
/// # Errors
/// One is set. The message has its new name.
pub(crate) fn refuse_old_variables() -> Result<(), Failure> {
    match VARIABLES.into_iter().find(|(old, _)| std::env::var_os(old).is_some()) {
        Some((old, new)) => Err(Failure::new(format!("the environment variable {old} is now {new}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{FLAGS, VARIABLES, flag_message};
    use crate::Arguments;

    fn serve_error(arguments: &[&str]) -> clap::Error {
        Arguments::try_parse_from([&["cofferdam", "serve"], arguments].concat()).unwrap_err()
    }

    #[test]
    fn an_old_flag_is_refused_with_the_new_one() {
        for (old, new) in FLAGS {
            let message = format!("{old} is now {new}");
            assert_eq!(flag_message(&serve_error(&[old, "1"])), Some(message.clone()));
            assert_eq!(flag_message(&serve_error(&[&format!("{old}=1")])), Some(message));
        }
    }

    #[test]
    fn other_errors_are_left_to_clap() {
        assert_eq!(flag_message(&serve_error(&["--nonsense"])), None);
        assert_eq!(flag_message(&serve_error(&["--pool", "many"])), None);
    }

    #[test]
    fn new_names_exist_and_old_ones_do_not() {
        let command = Arguments::command();
        let serve = command.find_subcommand("serve").unwrap();
        let has_flag =
            |flag: &str| serve.get_arguments().any(|arg| arg.get_long() == flag.strip_prefix("--"));
        for (old, new) in FLAGS {
            assert!(has_flag(new) && !has_flag(old), "{old} {new}");
        }
        let has_variable =
            |name: &str| serve.get_arguments().any(|arg| arg.get_env().is_some_and(|env| env == name));
        for (old, new) in VARIABLES {
            assert!(has_variable(new) && !has_variable(old), "{old} {new}");
        }
    }
}
