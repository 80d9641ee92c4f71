//! Terminals in a sandbox: login shells on pseudo-terminals.
//! Output arrives as [`ProcessEvent::Pty`](crate::ProcessEvent::Pty); input is sent by process id.
//! Programs see `xterm-256color` and a UTF-8 locale.

use std::collections::BTreeMap;
use std::time::Duration;

use envd_api::process::{ProcessConfig, StartRequest};

use crate::envd::Envd;
use crate::process::wire_size;
use crate::{Process, Result, RunningProcess, commands};

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Options of a terminal.
#[derive(Debug, Clone, Default)]
pub struct PtyOptions {
    /// User of the shell; by default the sandbox's default user.
    pub user: Option<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Further environment variables.
    pub envs: BTreeMap<String, String>,
    /// Command for the shell to run; by default it is interactive.
    pub command: Option<String>,
    /// Time limit, after which envd kills the shell; `None` for no limit.
    pub timeout: Option<Duration>,
}

/// Terminals of one sandbox; from [`Sandbox::pty`](crate::Sandbox::pty).
#[derive(Debug, Clone, Copy)]
pub struct Pty<'a> {
    pub(crate) envd: &'a Envd,
}

impl Pty<'_> {
    /// Starts a login shell on a terminal.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn create(&self, size: PtySize, options: PtyOptions) -> Result<RunningProcess> {
        let defaults = [("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), ("LC_ALL", "C.UTF-8")];
        let mut envs: BTreeMap<String, String> =
            defaults.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        envs.extend(options.envs);
        let config = ProcessConfig {
            cmd: "/bin/bash".into(),
            args: match options.command {
                Some(command) => vec!["-l".into(), "-c".into(), command],
                None => vec!["-i".into(), "-l".into()],
            },
            envs: envs.into_iter().collect(),
            cwd: options.cwd,
            ..Default::default()
        };
        let request =
            StartRequest { process: config.into(), pty: wire_size(size).into(), ..Default::default() };
        commands::start(self.envd, request, options.user.as_deref(), options.timeout).await
    }

    /// Attaches to a terminal and receives its output from now on.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn connect(&self, pid: u32) -> Result<RunningProcess> {
        commands::connect(self.envd, pid).await
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    /// There is no such process, or it has no terminal.
    pub async fn resize(&self, pid: u32, size: PtySize) -> Result<()> {
        Process::new(self.envd.clone(), pid).resize(size).await
    }

    /// Types into a terminal.
    ///
    /// # Errors
    /// There is no such process, or it has no terminal.
    pub async fn send_input(&self, pid: u32, data: impl Into<Vec<u8>>) -> Result<()> {
        Process::new(self.envd.clone(), pid).send_pty(data).await
    }

    /// Kills a terminal's shell. Returns whether it existed.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn kill(&self, pid: u32) -> Result<bool> {
        Process::new(self.envd.clone(), pid).kill().await
    }
}
