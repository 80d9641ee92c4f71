//! A session: a shell, a command or SFTP, with or without a terminal (RFC 4254, section 6).

use std::collections::BTreeMap;

use cofferdam_client::{Exit, Process, ProcessEvent, PtyOptions, PtySize, RunOptions, RunningProcess};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};

use crate::target::Target;

/// Variables that a client may set, besides `LC_…`.
const VARIABLES: [&str; 4] = ["LANG", "TERM", "COLORTERM", "GIT_PROTOCOL"];
/// How many it may set, and their length.
const MAX_VARIABLES: usize = 32;
const MAX_VALUE: usize = 256;
/// The one subsystem, and what runs it.
pub(crate) const SFTP: &str = "sftp";
const SFTP_COMMAND: &str = "exec /usr/bin/envd sftp";
/// Control-C, which a terminal makes a signal of.
const INTERRUPT: u8 = 3;

/// What a client has asked for so far.
#[derive(Debug, Default)]
struct Wanted {
    variables: BTreeMap<String, String>,
    terminal: Option<PtySize>,
}

/// What runs in a session.
enum Program {
    Shell,
    Command(String),
    Sftp,
}

/// Serves a channel until it is closed or its process has ended.
pub(crate) async fn run(target: Target, channel: Channel<Msg>, handle: Handle) {
    let (mut from_client, to_client) = channel.split();
    let mut wanted = Wanted::default();
    let Some(program) = asked_for(&mut from_client, &mut wanted).await else { return };
    let has_terminal = wanted.terminal.is_some() && !matches!(program, Program::Sftp);
    match start(&target, &program, wanted).await {
        Ok(running) => serve(running, from_client, &to_client, &handle, has_terminal).await,
        Err(reason) => {
            let _ = to_client.extended_data_bytes(1, format!("cofferdam: {reason}\r\n").into_bytes()).await;
            let _ = to_client.exit_status(255).await;
        }
    }
    let _ = to_client.eof().await;
    let _ = to_client.close().await;
}

/// Reads requests until one names a program; `None` if the channel is closed before. The replies are `client`'s: they must be sent at once,
/// because the next request may be here before this task runs.
async fn asked_for(from_client: &mut ChannelReadHalf, wanted: &mut Wanted) -> Option<Program> {
    loop {
        match from_client.wait().await? {
            ChannelMsg::RequestShell { .. } => return Some(Program::Shell),
            ChannelMsg::Exec { command, .. } => {
                return Some(Program::Command(String::from_utf8_lossy(&command).into_owned()));
            }
            ChannelMsg::RequestSubsystem { name, .. } if name == SFTP => return Some(Program::Sftp),
            ChannelMsg::RequestPty { term, col_width, row_height, .. } => {
                wanted.terminal = Some(size(col_width, row_height));
                wanted.set("TERM".to_owned(), term);
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                wanted.set(variable_name, variable_value);
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                wanted.terminal = Some(size(col_width, row_height));
            }
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// Whether a client may set a variable to this.
pub(crate) fn may_set(name: &str, value: &str) -> bool {
    let is_known = VARIABLES.contains(&name) || name.starts_with("LC_");
    is_known && name.len() <= MAX_VALUE && value.len() <= MAX_VALUE && !value.contains('\0')
}

impl Wanted {
    fn set(&mut self, name: String, value: String) {
        if may_set(&name, &value) && self.variables.len() < MAX_VARIABLES {
            self.variables.insert(name, value);
        }
    }
}

fn size(columns: u32, rows: u32) -> PtySize {
    let within = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).max(1);
    PtySize { cols: within(columns), rows: within(rows) }
}

async fn start(target: &Target, program: &Program, wanted: Wanted) -> Result<RunningProcess, String> {
    let sandbox = target.processes().await?;
    let command = match program {
        Program::Shell => None,
        Program::Command(command) => Some(command.clone()),
        Program::Sftp => Some(SFTP_COMMAND.to_owned()),
    };
    let terminal = wanted.terminal.filter(|_| !matches!(program, Program::Sftp));
    let started = match (terminal, command) {
        (Some(size), command) => {
            let options = PtyOptions { envs: wanted.variables, command, ..PtyOptions::default() };
            sandbox.pty().create(size, options).await
        }
        (None, command) => {
            // Without a terminal, a shell reads commands from its input.
            let command = command.unwrap_or_else(|| "exec /bin/bash -l".to_owned());
            let options =
                RunOptions { envs: wanted.variables, timeout: None, stdin: true, ..RunOptions::default() };
            sandbox.commands().start(&command, options).await
        }
    };
    started.map_err(|error| error.to_string())
}

/// Copies between the client and the process. A client that leaves ends the process, as the end of a terminal does.
async fn serve(
    mut running: RunningProcess,
    from_client: ChannelReadHalf,
    to_client: &ChannelWriteHalf<Msg>,
    handle: &Handle,
    has_terminal: bool,
) {
    let process = running.process();
    let output = async {
        while let Ok(Some(event)) = running.next().await {
            let sent = match event {
                ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => to_client.data_bytes(bytes).await,
                ProcessEvent::Stderr(bytes) => to_client.extended_data_bytes(1, bytes).await,
                ProcessEvent::Exited(exit) => {
                    tell_exit(&exit, to_client, handle).await;
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
        // The sandbox has ended or was paused.
        let _ = to_client.exit_status(255).await;
    };
    tokio::select! {
        () = output => {}
        () = feed(&process, from_client, has_terminal) => {
            let _ = process.kill().await;
        }
    }
}

/// Gives the process what the client sends; returns when the client closes the channel.
async fn feed(process: &Process, mut from_client: ChannelReadHalf, has_terminal: bool) {
    while let Some(message) = from_client.wait().await {
        // A process that has ended takes nothing more; its exit is told by its output.
        let _ = match message {
            ChannelMsg::Data { data } if has_terminal => process.send_pty(data).await,
            ChannelMsg::Data { data } => process.send_stdin(data).await,
            ChannelMsg::Eof if !has_terminal => process.close_stdin().await,
            ChannelMsg::WindowChange { col_width, row_height, .. } if has_terminal => {
                process.resize(size(col_width, row_height)).await
            }
            ChannelMsg::Signal { signal: Sig::KILL } => process.kill().await.map(drop),
            ChannelMsg::Signal { signal: Sig::INT } if has_terminal => process.send_pty([INTERRUPT]).await,
            ChannelMsg::Signal { .. } => process.terminate().await.map(drop),
            ChannelMsg::Close => return,
            _ => Ok(()),
        };
    }
}

async fn tell_exit(exit: &Exit, to_client: &ChannelWriteHalf<Msg>, handle: &Handle) {
    let signal = match exit.error.as_deref().and_then(|text| text.strip_prefix("signal: ")) {
        Some("killed") => Some(Sig::KILL),
        Some("terminated") => Some(Sig::TERM),
        Some("interrupt") => Some(Sig::INT),
        Some("hangup") => Some(Sig::HUP),
        Some("segmentation fault") => Some(Sig::SEGV),
        Some("aborted") => Some(Sig::ABRT),
        Some(_) => Some(Sig::TERM),
        None => None,
    };
    let _ = match signal {
        Some(signal) => {
            handle.exit_signal_request(to_client.id(), signal, false, String::new(), "en".to_owned()).await
        }
        None => to_client.exit_status(u32::try_from(exit.code).unwrap_or(255)).await.map_err(drop),
    };
}
