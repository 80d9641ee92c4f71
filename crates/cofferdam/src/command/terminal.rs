//! A terminal in a sandbox on the user's own: keys go in as they are typed, its size follows the window.
//! The local terminal is put back as it was, however the session ends.
//! While it is open the sandbox does not run out of time.

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

/// What a sandbox has left while a terminal is open, and how often that is seen to.
const LEASE: Duration = Duration::from_secs(120);
const RENEWAL: Duration = Duration::from_secs(40);

/// The terminal's settings as they were.
struct Restore(Termios);

impl Restore {
    /// Makes the terminal pass on every key.
    fn raw() -> Result<Self, Failure> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Refuses where there is no terminal to work on.
pub(crate) fn check() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    Err(Failure::new("this needs a terminal; use `cofferdam sandbox exec` in scripts"))
}

/// Opens a shell and stays until it ends.
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
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let _restore = Restore::raw()?;
    // Not in the loop below: a shell that waits for its output to be read takes no keys meanwhile.
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
            // Extends the sandbox's time and never shortens it.
            _ = renewal.tick() => drop(Sandbox::connect(client, sandbox.id(), Some(LEASE)).await),
            _ = terminate.recv() => return end(&process).await,
            _ = hang_up.recv() => return end(&process).await,
        }
    }
}

/// A shell that has just ended takes no more keys; its exit is the next event.
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
