//! The zygote: a Python process that has imported all modules, from which kernels are forked.
//! It is started with the server, and again when it has ended or packages were installed since, so that kernels see them.
//! It reports the exits of its children. When it ends, they become children of the interpreter.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::process::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use crate::envd::Env;
use crate::error::Error;
use crate::reaper::{KernelExit, Process, Reaper};

type Forks = Arc<Mutex<HashMap<u64, Fork>>>;

/// A fork that waits for the zygote's reports.
#[derive(Debug)]
struct Fork {
    started: Option<oneshot::Sender<Process>>,
    listening: Option<oneshot::Sender<()>>,
}

/// A running zygote. Dropping it ends the zygote, but not its kernels.
#[derive(Debug)]
pub(crate) struct Zygote {
    control: OwnedWriteHalf,
    forks: Forks,
    next: u64,
    process: Process,
    /// Directories of packages, and when they changed last.
    packages: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Zygote {
    /// Starts `python` and waits until it has imported the modules `preload`.
    pub(crate) async fn start(
        reaper: &Reaper,
        python: &Path,
        home: &Path,
        preload: &[String],
        env: &Env,
    ) -> Result<Self, Error> {
        let program = python.display().to_string();
        let failed = |source| Error::Start { program: program.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(python);
        command
            .arg(home.join("python/zygote.py"))
            .env_clear()
            .envs(env)
            .env("INTERPRETER_PRELOAD", preload.join(","))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        let (_, process) = reaper.spawn(&mut command).map_err(failed)?;
        drop(command);
        ours.set_nonblocking(true).map_err(Error::Link)?;
        let (read, control) = tokio::net::UnixStream::from_std(ours).map_err(Error::Link)?.into_split();
        let forks = Forks::default();
        let (tell_ready, ready) = oneshot::channel();
        tokio::spawn(listen(BufReader::new(read), reaper.clone(), Arc::clone(&forks), tell_ready));
        let paths = tokio::select! {
            paths = ready => paths.map_err(|_| Error::Link(io::ErrorKind::BrokenPipe.into()))?,
            ended = process.ended() => {
                return Err(Error::EndedEarly { language: crate::language::Language::Python, ended });
            }
        };
        let packages = paths.into_iter().map(|path| (path.clone(), changed(&path))).collect();
        Ok(Self { control, forks, next: 0, process, packages })
    }

    /// Whether it runs and no packages were installed since.
    pub(crate) fn is_fresh(&self) -> bool {
        self.process.status().is_none() && self.packages.iter().all(|(path, then)| changed(path) == *then)
    }

    /// Forks a kernel. Returns its process, and a receiver that resolves when it listens.
    pub(crate) async fn fork(
        &mut self,
        connection_file: &Path,
        cwd: &Path,
        env: &Env,
    ) -> Result<(Process, oneshot::Receiver<()>), Error> {
        self.next += 1;
        let (tell_started, started) = oneshot::channel();
        let (listening, listens) = oneshot::channel();
        let fork = Fork { started: Some(tell_started), listening: Some(listening) };
        self.forks.lock().insert(self.next, fork);
        let request = json!({"fork": self.next, "connection_file": connection_file, "cwd": cwd, "env": env});
        self.control.write_all(format!("{request}\n").as_bytes()).await.map_err(Error::Link)?;
        let process = started.await.map_err(|_| Error::Link(io::ErrorKind::BrokenPipe.into()))?;
        Ok((process, listens))
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

/// Reads the zygote's reports until it ends; then all waiting forks fail.
async fn listen(
    mut control: BufReader<OwnedReadHalf>,
    reaper: Reaper,
    forks: Forks,
    ready: oneshot::Sender<Vec<PathBuf>>,
) {
    let mut ready = Some(ready);
    let mut line = String::new();
    while control.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        line.clear();
        // Forks that are reported completely. Two processes report, in any order.
        forks.lock().retain(|_, fork| {
            fork.started.is_some() || fork.listening.as_ref().is_some_and(|waiting| !waiting.is_closed())
        });
        let pid = |name: &str| {
            let number = message[name].as_i64().and_then(|number| i32::try_from(number).ok());
            number.and_then(Pid::from_raw)
        };
        if let (Some(fork), Some(pid)) = (message["started"].as_u64(), pid("pid")) {
            let process = reaper.adopt(pid);
            let waiting = forks.lock().get_mut(&fork).and_then(|fork| fork.started.take());
            if let Some(Err(unwanted)) = waiting.map(|waiting| waiting.send(process)) {
                unwanted.kill();
            }
        } else if let Some(fork) = message["listening"].as_u64() {
            let waiting = forks.lock().get_mut(&fork).and_then(|fork| fork.listening.take());
            let _ = waiting.map(|waiting| waiting.send(()));
        } else if let Some(pid) = pid("exited") {
            let code = message["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
            reaper.report(pid, if code < 0 { KernelExit::Signal(-code) } else { KernelExit::Code(code) });
        } else if message["ready"] == true {
            let paths = message["paths"].as_array().into_iter().flatten();
            let paths = paths.filter_map(|path| path.as_str().map(PathBuf::from)).collect();
            let _ = ready.take().map(|ready| ready.send(paths));
        }
    }
    forks.lock().clear();
}
