//! Collects every child that ends, and says so at once: kernels, and orphans of kernels.
//! There is one caller of `wait`, and processes are started under its lock, so no end comes before its process is known.
//! Kernels that the Python zygote forked are its children; it reports them, and they come here only when it is gone.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::Error;
use crate::remains::Remains;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

type Running = HashMap<Pid, watch::Sender<Option<Ended>>>;

/// The one that waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    running: Arc<Mutex<Running>>,
    remains: Arc<Option<Remains>>,
}

/// A process, known by its group, which it leads.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: Pid,
    reaper: Reaper,
    ended: watch::Receiver<Option<Ended>>,
}

impl Reaper {
    /// Starts collecting; orphans come to us from here on. Those of an interpreter before us, noted in `directory`, are ended.
    pub(crate) fn start(dir: &Path) -> Result<Self, Error> {
        adopt_orphans();
        let mut children = signal(SignalKind::child()).map_err(Error::Runtime)?;
        let reaper = Self { remains: Arc::new(Remains::sweep(dir)), ..Self::default() };
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
        // Again, because not every snapshot of a sandbox carries it.
        adopt_orphans();
        let mut running = self.lock();
        let child = command.process_group(0).spawn()?;
        let process = self.note(&mut running, Pid::from_child(&child));
        Ok((child, process))
    }

    /// Takes in a process that the zygote started.
    pub(crate) fn adopt(&self, pid: Pid) -> Process {
        self.note(&mut self.lock(), pid)
    }

    /// What the zygote said of a child of its own.
    pub(crate) fn report(&self, pid: Pid, ended: Ended) {
        self.tell(&mut self.lock(), pid, ended);
    }

    fn note(&self, running: &mut Running, pid: Pid) -> Process {
        let (sender, ended) = watch::channel(None);
        running.insert(pid, sender);
        if let Some(remains) = &*self.remains {
            remains.note(pid);
        }
        Process { pid, reaper: self.clone(), ended }
    }

    fn reap(&self) {
        let mut running = self.lock();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(ended) = read(status) {
                self.tell(&mut running, pid, ended);
            }
        }
    }

    fn tell(&self, running: &mut Running, pid: Pid, ended: Ended) {
        let Some(sender) = running.remove(&pid) else { return };
        sender.send_replace(Some(ended));
        if let Some(remains) = &*self.remains {
            remains.forget(pid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// `None` while it runs.
    pub(crate) fn status(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        // The sender goes only with the end, or with the reaper, thus with us.
        let status = ended.wait_for(Option::is_some).await.map(|status| *status).ok().flatten();
        status.unwrap_or(Ended::Signal(0))
    }

    /// Ctrl-C for it and what it has started.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // Under the lock: a number that is still in the table has not been given to another process.
        if self.reaper.lock().contains_key(&self.pid) {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

fn adopt_orphans() {
    // Refused nowhere; without it only the ends of orphans would go unnoticed.
    let _ = rustix::process::set_child_subreaper(Pid::from_raw(1));
}

fn read(status: WaitStatus) -> Option<Ended> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended::Code(code)),
        (_, Some(signal)) => Some(Ended::Signal(signal)),
        _ => None,
    }
}
