//! [`BuildBar`]: progress of a build on standard error. On a terminal it is a bar; elsewhere one line for each stage.

use std::io::IsTerminal;

use host_tools::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// The progress display of one build.
#[derive(Debug)]
pub(crate) struct BuildBar {
    bar: Option<ProgressBar>,
    stage: String,
}

impl BuildBar {
    pub(crate) fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {elapsed} {msg}");
            let bar = ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(format!("building {name}"));
            bar
        });
        Self { bar, stage: String::new() }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total.max(1));
            bar.set_position(progress.done);
            bar.set_message(progress.stage.clone());
        } else if progress.stage != self.stage {
            eprintln!("building: {}", progress.stage);
        }
        self.stage.clone_from(&progress.stage);
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
