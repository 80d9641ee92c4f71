//! Reaps ended children, which are kernels and orphans of kernels, and reports the exits of kernels.
//! Only this module calls `wait`. Processes are started under its lock, so a process is known before it can be reaped.
//! Kernels that the Python zygote forked are its children: it reports their exits. They become children of this process when the zygote ends.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::Error;
use crate::kernel_records::KernelRecords;

/// How the process of a kernel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelExit {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for KernelExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

type RunningProcesses = HashMap<Pid, watch::Sender<Option<KernelExit>>>;

/// Reaps children. Clones share their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    running: Arc<Mutex<RunningProcesses>>,
    records: Arc<Option<KernelRecords>>,
}

/// A process that leads its process group.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: Pid,
    reaper: Reaper,
    ended: watch::Receiver<Option<KernelExit>>,
}

impl Reaper {
    /// Starts reaping, and becomes the parent of orphans. Kills the kernels of an earlier interpreter that are recorded in `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self, Error> {
        adopt_orphans();
        let mut children = signal(SignalKind::child()).map_err(Error::Runtime)?;
        let reaper = Self { records: Arc::new(KernelRecords::sweep(dir)), ..Self::default() };
        let own = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                own.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts `command` as the leader of a new process group.
    pub(crate) fn spawn(&self, command: &mut Command) -> std::io::Result<(Child, Process)> {
        use std::os::unix::process::CommandExt as _;
        // Again, because some snapshots of sandboxes do not restore this setting.
        adopt_orphans();
        let mut running = self.running.lock();
        let child = command.process_group(0).spawn()?;
        let process = self.register(&mut running, Pid::from_child(&child));
        Ok((child, process))
    }

    /// Registers a process that the zygote started.
    pub(crate) fn adopt(&self, pid: Pid) -> Process {
        self.register(&mut self.running.lock(), pid)
    }

    /// Records the exit of one of the zygote's children, as the zygote reports it.
    pub(crate) fn report(&self, pid: Pid, ended: KernelExit) {
        self.record_exit(&mut self.running.lock(), pid, ended);
    }

    fn register(&self, running: &mut RunningProcesses, pid: Pid) -> Process {
        let (sender, ended) = watch::channel(None);
        running.insert(pid, sender);
        if let Some(records) = &*self.records {
            records.add(pid);
        }
        Process { pid, reaper: self.clone(), ended }
    }

    fn reap(&self) {
        let mut running = self.running.lock();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(ended) = read(status) {
                self.record_exit(&mut running, pid, ended);
            }
        }
    }

    fn record_exit(&self, running: &mut RunningProcesses, pid: Pid, ended: KernelExit) {
        let Some(sender) = running.remove(&pid) else { return };
        sender.send_replace(Some(ended));
        if let Some(records) = &*self.records {
            records.remove(pid);
        }
    }
}

impl Process {
    /// Returns how the process ended; `None` while it runs.
    pub(crate) fn status(&self) -> Option<KernelExit> {
        *self.ended.borrow()
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&self) -> KernelExit {
        let mut ended = self.ended.clone();
        // The sender is dropped only after the end, or with the reaper.
        let status = ended.wait_for(Option::is_some).await.map(|status| *status).ok().flatten();
        status.unwrap_or(KernelExit::Signal(0))
    }

    /// Sends SIGINT to the process group, like Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // Under the lock: an id that is still registered does not belong to another process.
        if self.reaper.running.lock().contains_key(&self.pid) {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

fn adopt_orphans() {
    // Never fails in practice; without it only the exits of orphans would go unnoticed.
    let _ = rustix::process::set_child_subreaper(Pid::from_raw(1));
}

fn read(status: WaitStatus) -> Option<KernelExit> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(KernelExit::Code(code)),
        (_, Some(signal)) => Some(KernelExit::Signal(signal)),
        _ => None,
    }
}
