//! `cofferdam sandbox exec`: a command in a sandbox as if it ran here: output, input, interrupt, exit code.
//! It is run by the user's login shell; more than one word is quoted for it, a single one is a script.
//! Standard input is passed on when it is not a terminal.

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

/// Most input in one request.
const CHUNK: usize = 64 * 1024;

/// What to run, and where.
#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    data: DataDir,
    /// Who runs it; by default the template's default user.
    #[arg(long)]
    user: Option<String>,
    /// Where; by default the template's working directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Variable beside the sandbox's own. May be repeated.
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// The sandbox.
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
            // Nobody reads any more; a local command would be ended by SIGPIPE.
            process.kill().await?;
            return Ok(ExitCode::from(128 + 13));
        }
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// As a local shell reports it: 128 and the signal's number where one ended the process.
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

/// Standard input, read by a thread of its own: a pending read must not keep us from ending.
pub(crate) fn read_stdin() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Errors are the end of the process' interest in input, which its exit reports.
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
