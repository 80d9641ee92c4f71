//! Processes in a sandbox: a handle to feed and end one, and the stream of what it prints.
//! Letting go of either never ends the process; only its own end, a signal or a time limit does.
//! Output is bytes; text is the reader's interpretation.

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

use crate::rpc::Envd;
use crate::{Error, PtySize, Result};

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// `exit status 3` or `signal: killed`; none when all went well.
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

/// Something a process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote this to standard output. Pieces end anywhere, in the middle of a character too.
    Stdout(Bytes),
    /// It wrote this to standard error.
    Stderr(Bytes),
    /// It wrote this to its terminal.
    Pty(Bytes),
    /// It ended. Nothing follows.
    Exited(Exit),
}

/// All that a finished process printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output; for a process on a terminal, all of it.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

impl Output {
    /// Standard output as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Makes an exit code other than 0 an error, as the official SDKs do.
    ///
    /// # Errors
    /// [`Error::CommandFailed`] with this output.
    pub fn check(self) -> Result<Self> {
        if self.exit.success() { Ok(self) } else { Err(Error::CommandFailed(Box::new(self))) }
    }
}

/// A process in a sandbox, by its id. Clones mean the same process.
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

    /// Ends it by force. Answers whether it was still there.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn kill(&self) -> Result<bool> {
        self.signal(Signal::SIGNAL_SIGKILL).await
    }

    /// Asks it to end. Answers whether it was still there.
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

    /// Writes to its standard input, which must have been asked for at its start.
    ///
    /// # Errors
    /// It has ended, or its input is closed.
    pub async fn send_stdin(&self, data: impl Into<Vec<u8>>) -> Result<()> {
        self.send(Input::Stdin(data.into())).await
    }

    /// Types into its terminal.
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

    /// Gives it end-of-file on its standard input.
    ///
    /// # Errors
    /// It has ended, or has no such input.
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

/// Either stream of process events; they differ in name only.
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

/// A process and the stream of what it does. Dropping it leaves the process running.
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

    /// A handle to feed and end it, usable while events are read.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process.clone()
    }

    /// Its process id inside the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The next thing it does; none after [`Event::Exited`].
    ///
    /// # Errors
    /// The connection broke, the time limit passed, or the sandbox ended.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        while !self.ended {
            match self.stream.next(&self.process.envd).await? {
                Some(WireEvent::Data(data)) => match data.output {
                    Some(WireOutput::Stdout(bytes)) => return Ok(Some(Event::Stdout(bytes.into()))),
                    Some(WireOutput::Stderr(bytes)) => return Ok(Some(Event::Stderr(bytes.into()))),
                    Some(WireOutput::Pty(bytes)) => return Ok(Some(Event::Pty(bytes.into()))),
                    None => {}
                },
                Some(WireEvent::End(end)) => {
                    self.ended = true;
                    return Ok(Some(Event::Exited(Exit { code: end.exit_code, error: end.error })));
                }
                Some(WireEvent::Start(_) | WireEvent::Keepalive(_)) => {}
                None => return Err(Error::Protocol("the stream ended before the process did".into())),
            }
        }
        Ok(None)
    }

    /// Reads everything that is still to come and answers it with the exit.
    ///
    /// # Errors
    /// As [`RunningProcess::next`]; [`Error::Protocol`] if the end was read already.
    pub async fn wait(mut self) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.next().await? {
            match event {
                Event::Stdout(bytes) | Event::Pty(bytes) => stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Event::Exited(exit) => return Ok(Output { stdout, stderr, exit }),
            }
        }
        Err(Error::Protocol("the process' end was read before".into()))
    }

    /// Ends it by force. Answers whether it was still there.
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
