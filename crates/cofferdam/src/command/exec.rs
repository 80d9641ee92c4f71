//! `cofferdam sandbox exec`: runs a command in a sandbox with local output, input, interrupt and exit code.
//! The user's login shell runs it: one word is a script, several words are quoted for the shell.
//! Standard input is sent if it is not a terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::Args;
use cofferdam_client::{Exit, Process, ProcessEvent, RunOptions, Sandbox};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::sandbox::pair;
use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;

/// Maximum input in one request, bytes.
const MAX_CHUNK: usize = 64 * 1024;

/// Arguments of `sandbox exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    data: DataDir,
    /// User that runs the command. [default: the template's default user]
    #[arg(long)]
    user: Option<String>,
    /// Working directory. [default: the template's]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Environment variable, in addition to the sandbox's own. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// Sandbox id.
    id: String,
    /// The command. One word is a shell script; several are a program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn exec(arguments: ExecArguments) -> Result<ExitCode, Failure> {
    let client = team_client(&arguments.data)?;
    let sandbox = Sandbox::connect(&client, &arguments.id, None).await?;
    let piped = !io::stdin().is_terminal();
    let options = RunOptions {
        user: arguments.user,
        cwd: arguments.cwd,
        envs: arguments.env.into_iter().collect(),
        timeout: None,
        stdin: piped,
        tag: None,
    };
    let mut running = sandbox.commands().start(&script(&arguments.command), options).await?;
    let process = running.process();
    if piped {
        tokio::spawn(feed(process.clone(), read_stdin()?));
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let event = tokio::select! {
            event = running.next() => event?,
            _ = interrupt.recv() => { process.kill().await?; continue }
            _ = terminate.recv() => { process.kill().await?; continue }
        };
        let written = match event {
            Some(ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes)) => write(io::stdout(), &bytes),
            Some(ProcessEvent::Stderr(bytes)) => write(io::stderr(), &bytes),
            Some(ProcessEvent::Exited(exit)) => return Ok(exit_code(&exit)),
            None => return Ok(ExitCode::FAILURE),
        };
        if written.is_err() {
            // The reader of our output is gone: SIGPIPE would end a local command.
            process.kill().await?;
            return Ok(ExitCode::from(128 + 13));
        }
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Returns the exit code as a local shell has it: 128 plus the signal's number if a signal ended the process.
pub(crate) fn exit_code(exit: &Exit) -> ExitCode {
    if let Ok(code) = u8::try_from(exit.code) {
        return ExitCode::from(code);
    }
    match exit.error.as_deref() {
        Some("signal: killed") => ExitCode::from(128 + 9),
        Some("signal: terminated") => ExitCode::from(128 + 15),
        _ => ExitCode::from(255),
    }
}

/// Reads standard input in a thread, because a pending read would delay the end of the runtime.
pub(crate) fn read_stdin() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = vec![0; MAX_CHUNK];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Sends input until its end, or until the process has ended and takes none.
async fn feed(process: Process, mut input: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = input.recv().await {
        if process.send_stdin(bytes).await.is_err() {
            return;
        }
    }
    let _ = process.close_stdin().await;
}

fn script(words: &[String]) -> String {
    match words {
        [script] => script.clone(),
        words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(script(&words(&["echo $HOME"])), "echo $HOME");
        assert_eq!(script(&words(&["echo", "$HOME", "it's", ""])), r"echo '$HOME' 'it'\''s' ''");
    }
}
