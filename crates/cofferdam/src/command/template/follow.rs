//! Follows a build to its end: shows one line of progress on a terminal, elsewhere every line of the build's log.
//! The API has no stream of the log, so it is polled: at once while there are new lines, else every 200 ms.
//! A failed build fails the command with its reason.

use std::io::IsTerminal;
use std::time::Duration;

use cofferdam_client::{BuildHandle, BuildLine, Client};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;

/// Time between two requests while there are no new lines.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Shows lines of a build's log.
struct LogDisplay {
    bar: Option<ProgressBar>,
    verbose: bool,
}

impl LogDisplay {
    fn new(name: &str, verbose: bool) -> Self {
        let bar = (std::io::stderr().is_terminal() && !verbose).then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
            let bar = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, verbose }
    }

    fn show(&self, line: &BuildLine) {
        let is_step = line.message.contains("[builder ") && !line.message.contains("] [std");
        let is_headline =
            is_step || line.message.starts_with("[base] FROM") || line.message.starts_with("CACHED");
        match &self.bar {
            // Headlines of steps stay on the screen; output of steps replaces the line of progress.
            Some(bar) if is_headline || line.level == "warn" => bar.println(shortened(&line.message)),
            Some(bar) => bar.set_message(line.message.clone()),
            None if line.level != "debug" || self.verbose => eprintln!("{}", line.message),
            None => {}
        }
    }
}

/// Returns a line without the step's cache key at its end.
fn shortened(message: &str) -> String {
    match message.rsplit_once(" [") {
        Some((text, key)) if key.len() == 65 && key.ends_with(']') => text.to_owned(),
        _ => message.to_owned(),
    }
}

/// Follows a build until it is ready.
///
/// # Errors
/// The build failed, or its state cannot be read.
pub(super) async fn follow(
    client: &Client,
    name: &str,
    build: &BuildHandle,
    verbose: bool,
) -> Result<(), Failure> {
    let display = LogDisplay::new(name, verbose);
    let mut seen = 0;
    loop {
        let progress = client.build_progress(build, seen).await?;
        progress.log_entries.iter().for_each(|line| display.show(line));
        seen += progress.log_entries.len();
        if !progress.log_entries.is_empty() {
            continue;
        }
        if progress.has_ended() {
            if let Some(bar) = display.bar {
                bar.finish_and_clear();
            }
            return match progress.reason {
                None if progress.status == "ready" => Ok(()),
                reason => Err(failure(reason.map(|reason| (reason.message, reason.step)))),
            };
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn failure(reason: Option<(String, Option<String>)>) -> Failure {
    match reason {
        Some((message, Some(step))) if step.parse::<u32>().is_ok() => {
            Failure::new(format!("the build failed in step {step}: {message}"))
        }
        Some((message, _)) => Failure::new(format!("the build failed: {message}")),
        None => Failure::new("the build failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_left_out() {
        let key = "a".repeat(64);
        assert_eq!(shortened(&format!("[builder 1/2] RUN x [y] [{key}]")), "[builder 1/2] RUN x [y]");
        assert_eq!(shortened("RUN [x]"), "RUN [x]");
    }
}
