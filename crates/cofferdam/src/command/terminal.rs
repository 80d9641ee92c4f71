//! A session in a sandbox's terminal: keys are sent as they are typed, its size follows the local window.
//! The local terminal's settings are restored at the end. While the session is open, the sandbox's time limit is extended.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use cofferdam_client::{Client, Process, ProcessEvent, PtyOptions, PtySize, Sandbox};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::exec::{exit_code, read_stdin};
use crate::failure::Failure;

/// Minimum time until the sandbox's limit while a session is open.
const MIN_TIME_LEFT: Duration = Duration::from_secs(120);
/// How often the limit is extended.
const EXTEND_INTERVAL: Duration = Duration::from_secs(40);

/// The terminal's settings before the session. Dropping it restores them.
struct TerminalSettings(Termios);

impl TerminalSettings {
    /// Puts the terminal into raw mode and returns its settings before.
    fn make_raw() -> Result<Self, Failure> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Checks that standard input and output are a terminal.
pub(crate) fn check() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    Err(Failure::new("this needs a terminal; use `cofferdam sandbox exec` in scripts"))
}

/// Opens a shell in a terminal of the sandbox and returns its exit code when it ends.
pub(crate) async fn attach(
    client: &Client,
    sandbox: &Sandbox,
    user: Option<String>,
) -> Result<ExitCode, Failure> {
    let options = PtyOptions { user, ..PtyOptions::default() };
    let mut shell = sandbox.pty().create(size(), options).await?;
    let process = shell.process();
    let mut resized = signal(SignalKind::window_change())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut extend = tokio::time::interval(EXTEND_INTERVAL);
    extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let _restore = TerminalSettings::make_raw()?;
    // In a task: a shell that blocks on its output takes no keys, and the loop below must then read that output.
    tokio::spawn(type_keys(process.clone(), read_stdin()?));
    loop {
        tokio::select! {
            event = shell.next() => match event? {
                Some(ProcessEvent::Pty(bytes) | ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes)) => {
                    let mut out = io::stdout();
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
                Some(ProcessEvent::Exited(exit)) => return Ok(exit_code(&exit)),
                None => return Ok(ExitCode::FAILURE),
            },
            _ = resized.recv() => drop(process.resize(size()).await),
            // A connect extends the time limit and never shortens it.
            _ = extend.tick() => drop(Sandbox::connect(client, sandbox.id(), Some(MIN_TIME_LEFT)).await),
            _ = terminate.recv() => return end(&process).await,
            _ = hang_up.recv() => return end(&process).await,
        }
    }
}

/// Sends keys until the shell has ended, which is the session's next event.
async fn type_keys(shell: Process, mut keys: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = keys.recv().await {
        if shell.send_pty(bytes).await.is_err() {
            return;
        }
    }
}

async fn end(shell: &Process) -> Result<ExitCode, Failure> {
    shell.kill().await?;
    Ok(ExitCode::FAILURE)
}

fn size() -> PtySize {
    match termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => PtySize { cols: size.ws_col, rows: size.ws_row },
        _ => PtySize { cols: 80, rows: 24 },
    }
}
