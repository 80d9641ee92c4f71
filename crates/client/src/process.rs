//! Processes in a sandbox: a handle to send input and signals, and the stream of a process's output.
//! Dropping either does not end the process.
//! Output is bytes, which need not be UTF-8.

use std::fmt;

use bytes::Bytes;
use connectrpc::client::ServerStream;
use envd_api::process::__buffa::oneof::process_event::Event as WireEvent;
use envd_api::process::__buffa::oneof::process_event::data_event::Output as WireOutput;
use envd_api::process::__buffa::oneof::process_input::Input;
use envd_api::process::__buffa::oneof::process_selector::Selector;
use envd_api::process::__buffa::view::{ConnectResponseView, StartResponseView};
use envd_api::process::{
    CloseStdinRequest, ConnectResponse, PTY, ProcessInput, ProcessSelector, SendInputRequest,
    SendSignalRequest, Signal, StartResponse, UpdateRequest, pty,
};
use hyper::body::Incoming;

use crate::envd::Envd;
use crate::{Error, PtySize, Result};

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// `exit status 3` or `signal: killed`; `None` after success.
    pub error: Option<String>,
}

impl Exit {
    /// Whether it ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => f.write_str(error),
            None => write!(f, "exit status {}", self.code),
        }
    }
}

/// Output or end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Bytes of its standard output. Pieces may split characters.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Bytes of its terminal.
    Pty(Bytes),
    /// It ended. This is the last event.
    Exited(Exit),
}

/// The whole output of a finished process, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output; for a process on a terminal, all output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

impl Output {
    /// Standard output as text; invalid UTF-8 is replaced.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; invalid UTF-8 is replaced.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns an error if the exit code is not 0, like the official SDKs.
    ///
    /// # Errors
    /// [`Error::CommandFailed`] with this output.
    pub fn check(self) -> Result<Self> {
        if self.exit.success() { Ok(self) } else { Err(Error::CommandFailed(Box::new(self))) }
    }
}

/// A handle to a process in a sandbox. Clones refer to the same process.
#[derive(Debug, Clone)]
pub struct Process {
    envd: Envd,
    pid: u32,
}

impl Process {
    pub(crate) fn new(envd: Envd, pid: u32) -> Self {
        Self { envd, pid }
    }

    /// Its process id inside the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(Selector::Pid(self.pid)), ..Default::default() }
    }

    /// Kills the process. Returns whether it still ran.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn kill(&self) -> Result<bool> {
        self.signal(Signal::SIGNAL_SIGKILL).await
    }

    /// Sends SIGTERM. Returns whether the process still ran.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn terminate(&self) -> Result<bool> {
        self.signal(Signal::SIGNAL_SIGTERM).await
    }

    async fn signal(&self, signal: Signal) -> Result<bool> {
        let request = SendSignalRequest {
            process: self.selector().into(),
            signal: signal.into(),
            ..Default::default()
        };
        match self.envd.process.send_signal_with_options(request, self.envd.unary(None)).await {
            Ok(_) => Ok(true),
            Err(error) => match self.envd.explain(error).await {
                Error::NotFound(_) => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Writes to its standard input, which must have been requested at its start.
    ///
    /// # Errors
    /// It has ended, or its input is closed.
    pub async fn send_stdin(&self, data: impl Into<Vec<u8>>) -> Result<()> {
        self.send(Input::Stdin(data.into())).await
    }

    /// Writes to its terminal.
    ///
    /// # Errors
    /// It has ended, or has no terminal.
    pub async fn send_pty(&self, data: impl Into<Vec<u8>>) -> Result<()> {
        self.send(Input::Pty(data.into())).await
    }

    async fn send(&self, input: Input) -> Result<()> {
        let request = SendInputRequest {
            process: self.selector().into(),
            input: ProcessInput { input: Some(input), ..Default::default() }.into(),
            ..Default::default()
        };
        match self.envd.process.send_input_with_options(request, self.envd.unary(None)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// It has ended, or its standard input is not open.
    pub async fn close_stdin(&self) -> Result<()> {
        let request = CloseStdinRequest { process: self.selector().into(), ..Default::default() };
        match self.envd.process.close_stdin_with_options(request, self.envd.unary(None)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// It has ended, or has no terminal.
    pub async fn resize(&self, size: PtySize) -> Result<()> {
        let request = UpdateRequest {
            process: self.selector().into(),
            pty: wire_size(size).into(),
            ..Default::default()
        };
        match self.envd.process.update_with_options(request, self.envd.unary(None)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.envd.explain(error).await),
        }
    }
}

pub(crate) fn wire_size(size: PtySize) -> PTY {
    let size = pty::Size { cols: size.cols.into(), rows: size.rows.into(), ..Default::default() };
    PTY { size: size.into(), ..Default::default() }
}

/// The event stream of a start or connect request; they differ in their types only.
pub(crate) enum EventStream {
    Start(ServerStream<Incoming, StartResponseView<'static>>),
    Connect(ServerStream<Incoming, ConnectResponseView<'static>>),
}

impl EventStream {
    async fn next(&mut self, envd: &Envd) -> Result<Option<WireEvent>> {
        let event = match self {
            Self::Start(stream) => stream
                .message::<StartResponse>()
                .await
                .map(|message| message.map(|message| message.to_owned_message().event)),
            Self::Connect(stream) => stream
                .message::<ConnectResponse>()
                .await
                .map(|message| message.map(|message| message.to_owned_message().event)),
        };
        match event {
            Ok(event) => Ok(event.unwrap_or_default().into_option().and_then(|event| event.event)),
            Err(error) => Err(envd.explain(error).await),
        }
    }
}

/// A process and the stream of its output. Dropping it leaves the process running.
pub struct RunningProcess {
    process: Process,
    stream: EventStream,
    ended: bool,
}

impl fmt::Debug for RunningProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningProcess")
            .field("pid", &self.process.pid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl RunningProcess {
    /// Waits for the first event, which names the process.
    pub(crate) async fn open(envd: &Envd, mut stream: EventStream) -> Result<Self> {
        match stream.next(envd).await? {
            Some(WireEvent::Start(start)) => {
                Ok(Self { process: Process::new(envd.clone(), start.pid), stream, ended: false })
            }
            _ => Err(Error::Protocol("the process did not start".into())),
        }
    }

    /// Returns a handle to send input and signals while events are read.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process.clone()
    }

    /// Its process id inside the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Returns the next event, or `None` after [`ProcessEvent::Exited`].
    ///
    /// # Errors
    /// The connection broke, the time limit passed, or the sandbox ended.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        while !self.ended {
            match self.stream.next(&self.process.envd).await? {
                Some(WireEvent::Data(data)) => match data.output {
                    Some(WireOutput::Stdout(bytes)) => return Ok(Some(ProcessEvent::Stdout(bytes.into()))),
                    Some(WireOutput::Stderr(bytes)) => return Ok(Some(ProcessEvent::Stderr(bytes.into()))),
                    Some(WireOutput::Pty(bytes)) => return Ok(Some(ProcessEvent::Pty(bytes.into()))),
                    None => {}
                },
                Some(WireEvent::End(end)) => {
                    self.ended = true;
                    return Ok(Some(ProcessEvent::Exited(Exit { code: end.exit_code, error: end.error })));
                }
                Some(WireEvent::Start(_) | WireEvent::Keepalive(_)) => {}
                None => return Err(Error::Protocol("the stream ended before the process did".into())),
            }
        }
        Ok(None)
    }

    /// Reads the remaining output and returns it with the exit.
    ///
    /// # Errors
    /// As [`RunningProcess::next`]; [`Error::Protocol`] if the end was read already.
    pub async fn wait(mut self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.next().await? {
            match event {
                ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => stdout.extend_from_slice(&bytes),
                ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ProcessEvent::Exited(exit) => return Ok(Output { stdout, stderr, exit }),
            }
        }
        Err(Error::Protocol("the end of the process was read before".into()))
    }

    /// Kills the process. Returns whether it still ran.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn kill(&self) -> Result<bool> {
        self.process.kill().await
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// As [`Process::send_stdin`].
    pub async fn send_stdin(&self, data: impl Into<Vec<u8>>) -> Result<()> {
        self.process.send_stdin(data).await
    }
}
