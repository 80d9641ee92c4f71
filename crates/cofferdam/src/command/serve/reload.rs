//! SIGHUP: the configuration file is read again, and what can change without a restart does: the levels of the log, and the operator's
//! egress policy for all sandboxes. What else has changed is named in the log. A file that is wrong changes nothing.
//! Certificates need no signal: their files are watched.

use std::ffi::OsString;
use std::sync::Arc;

use net::OperatorPolicies;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::telemetry::{LogLevels, log_filter};
use super::{ServeArguments, service, settings};
use crate::command::Command;
use crate::configuration::{self, ParseError, Setting};
use crate::failure::Failure;

/// The settings that change at once.
const CHANGEABLE: [&str; 3] = ["log", "egress-deny", "egress-allow-only"];

/// Reads the configuration again at each SIGHUP from now on.
///
/// # Errors
/// The signal cannot be caught.
pub(super) fn on_hangup(log_levels: LogLevels, operator: Arc<OperatorPolicies>) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup())?;
    // What the process was started with; nothing to compare with if the file is gone since.
    let mut in_force = read().map(|(settings, _)| settings).unwrap_or_default();
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let now = NotifyState::monotonic_usec_now().ok();
            service::tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
            match read().and_then(|(settings, arguments)| {
                let levels = log_filter(&arguments.log)?;
                log_levels.reload(levels)?;
                operator.set_for_all(settings::policy_for_all(&arguments));
                Ok(settings)
            }) {
                Ok(settings) => {
                    tell_changes(&in_force, &settings);
                    in_force = settings;
                }
                Err(failure) => error!("the configuration stays as it was: {failure}"),
            }
            service::tell(&[NotifyState::Ready]);
        }
    });
    Ok(())
}

fn tell_changes(before: &[Setting], after: &[Setting]) {
    let changed: Vec<&str> = changes(before, after).collect();
    let (now, later): (Vec<&str>, Vec<&str>) = changed.iter().partition(|name| CHANGEABLE.contains(name));
    info!(changed = now.join(", "), "read the configuration again");
    if !later.is_empty() {
        warn!(changed = later.join(", "), "these settings take effect at the next start");
    }
}

/// Names of the settings that differ.
fn changes<'all>(before: &'all [Setting], after: &'all [Setting]) -> impl Iterator<Item = &'all str> {
    let values =
        |name: &str| before.iter().find(|setting| setting.name == name).map(|setting| &setting.values);
    after
        .iter()
        .filter(move |setting| values(&setting.name) != Some(&setting.values))
        .map(|setting| &*setting.name)
}

/// Reads what this process would be started with now.
fn read() -> Result<(Vec<Setting>, ServeArguments), Failure> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let read = configuration::settings(&words).and_then(|(settings, _)| {
        let arguments = configuration::parse(words.iter().cloned())?;
        Ok((settings, arguments))
    });
    match read {
        Ok((settings, crate::Arguments { command: Command::Serve(arguments) })) => Ok((settings, *arguments)),
        Ok(_) => Err(Failure::new("this process was not started as a server")),
        Err(ParseError::File(failure)) => Err(failure),
        Err(ParseError::CommandLine(error)) => Err(error.into()),
    }
}
