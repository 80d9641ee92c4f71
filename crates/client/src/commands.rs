//! Commands in a sandbox, run by a login shell like in the official SDKs.
//! `run` waits for the end; `start` returns a stream of events.
//! Processes that others started can be listed, attached to and killed.

use std::collections::BTreeMap;
use std::time::Duration;

use envd_api::process::__buffa::oneof::process_selector::Selector;
use envd_api::process::{ConnectRequest, ListRequest, ProcessConfig, ProcessSelector, StartRequest};
use serde::Serialize;

use crate::envd::Envd;
use crate::process::EventStream;
use crate::{Output, Process, Result, RunningProcess};

/// Options of a command.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// User that runs it; by default the sandbox's default user.
    pub user: Option<String>,
    /// Working directory; by default the template's.
    pub cwd: Option<String>,
    /// Further environment variables.
    pub envs: BTreeMap<String, String>,
    /// Time limit, after which envd kills it; 60 s by default, `None` for no limit.
    pub timeout: Option<Duration>,
    /// Whether its standard input can be written to.
    pub stdin: bool,
    /// A tag to find it by later.
    pub tag: Option<String>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            user: None,
            cwd: None,
            envs: BTreeMap::new(),
            timeout: Some(Duration::from_secs(60)),
            stdin: false,
            tag: None,
        }
    }
}

/// A running process that was started through envd.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessInfo {
    /// Its process id inside the sandbox.
    pub pid: u32,
    /// Its tag, if it has one.
    pub tag: Option<String>,
    /// Program.
    pub cmd: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment variables of its start request.
    pub envs: BTreeMap<String, String>,
    /// Working directory of its start request.
    pub cwd: Option<String>,
}

/// Commands of one sandbox; from [`Sandbox::commands`](crate::Sandbox::commands).
#[derive(Debug, Clone, Copy)]
pub struct Commands<'a> {
    pub(crate) envd: &'a Envd,
}

impl Commands<'_> {
    /// Runs a shell command to its end. A failed command is no error here; see [`Output::check`].
    ///
    /// # Errors
    /// It could not be started, took too long, or the sandbox ended.
    pub async fn run(&self, command: &str, options: RunOptions) -> Result<Output> {
        self.start(command, options).await?.wait().await
    }

    /// Starts a shell command and returns a stream of its output.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start(&self, command: &str, options: RunOptions) -> Result<RunningProcess> {
        let config = ProcessConfig {
            cmd: "/bin/bash".into(),
            args: vec!["-l".into(), "-c".into(), command.into()],
            envs: options.envs.into_iter().collect(),
            cwd: options.cwd,
            ..Default::default()
        };
        let request = StartRequest {
            process: config.into(),
            stdin: Some(options.stdin),
            tag: options.tag,
            ..Default::default()
        };
        start(self.envd, request, options.user.as_deref(), options.timeout).await
    }

    /// Lists running processes, of commands and terminals.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn list(&self) -> Result<Vec<ProcessInfo>> {
        let response =
            self.envd.process.list_with_options(ListRequest::default(), self.envd.unary(None)).await;
        let response = match response {
            Ok(response) => response.into_owned(),
            Err(error) => return Err(self.envd.explain(error).await),
        };
        let view = |info: envd_api::process::ProcessInfo| {
            let config = info.config.into_option().unwrap_or_default();
            ProcessInfo {
                pid: info.pid,
                tag: info.tag,
                cmd: config.cmd,
                args: config.args,
                envs: config.envs.into_iter().collect(),
                cwd: config.cwd,
            }
        };
        Ok(response.processes.into_iter().map(view).collect())
    }

    /// Attaches to a process and receives its output from now on.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn connect(&self, pid: u32) -> Result<RunningProcess> {
        connect(self.envd, pid).await
    }

    /// Kills a process. Returns whether it existed.
    ///
    /// # Errors
    /// The sandbox cannot be reached.
    pub async fn kill(&self, pid: u32) -> Result<bool> {
        self.process(pid).kill().await
    }

    /// Writes to the standard input of a process.
    ///
    /// # Errors
    /// There is no such process, or its standard input is not open.
    pub async fn send_stdin(&self, pid: u32, data: impl Into<Vec<u8>>) -> Result<()> {
        self.process(pid).send_stdin(data).await
    }

    /// Returns a handle to a process.
    #[must_use]
    pub fn process(&self, pid: u32) -> Process {
        Process::new(self.envd.clone(), pid)
    }
}

pub(crate) async fn start(
    envd: &Envd,
    request: StartRequest,
    user: Option<&str>,
    limit: Option<Duration>,
) -> Result<RunningProcess> {
    match envd.process.start_with_options(request, envd.stream(user, limit)).await {
        Ok(stream) => RunningProcess::open(envd, EventStream::Start(stream)).await,
        Err(error) => Err(envd.explain(error).await),
    }
}

pub(crate) async fn connect(envd: &Envd, pid: u32) -> Result<RunningProcess> {
    let selector = ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() };
    let request = ConnectRequest { process: selector.into(), ..Default::default() };
    match envd.process.connect_with_options(request, envd.stream(None, None)).await {
        Ok(stream) => RunningProcess::open(envd, EventStream::Connect(stream)).await,
        Err(error) => Err(envd.explain(error).await),
    }
}
