//! The registry of processes that clients can select: live ones and, for a while, ended ones.
//! A process is live until the reaper has its status, and attachable until its last output is delivered.
//! Look-ups by tag prefer a live process, then the process that ended last.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use envd_api::process::process_event::EndEvent;
use envd_api::process::{ProcessConfig, process_selector::Selector};
use rustix::process::{Pid, Signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::process::memory_kill::MemoryKills;
use crate::process::status;
use crate::state::lock;

/// How long an ended process is remembered and can be attached to.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Maximum number of ended processes that are remembered.
const MAX_REMEMBERED: usize = 1024;

/// An event for the subscribers of a process.
#[derive(Debug, Clone)]
pub enum OutputEvent {
    /// From standard output.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// From the terminal.
    Pty(Bytes),
    /// The last event.
    End(EndEvent),
}

/// Where the input of a process is written to.
#[derive(Debug)]
pub enum InputTarget {
    /// The write end of its standard input; `None` if it is closed or was never open.
    Pipe(Option<AsyncFd<OwnedFd>>),
    /// The terminal's master side.
    Terminal,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its id in the sandbox.
    pub pid: u32,
    /// Tag that the client gave it.
    pub tag: Option<String>,
    /// The client's start request.
    pub config: ProcessConfig,
    /// Master side of its terminal, if it has one.
    pub terminal: Option<AsyncFd<OwnedFd>>,
    /// Locked by a writer for the whole of its input.
    pub input: tokio::sync::Mutex<InputTarget>,
    /// Receives the exit status; taken by the reaper.
    exit: Mutex<Option<oneshot::Sender<ExitStatus>>>,
    /// Receivers of output; `None` once the end has been delivered.
    subscribers: Mutex<Option<Vec<mpsc::Sender<OutputEvent>>>>,
    /// Whether the end is delivered although other processes hold the pipes open.
    hurry: AtomicBool,
    /// Number of kills for want of memory in the sandbox that was known at its start.
    memory_kills: u64,
    /// Whether a client, or its time limit, had it killed.
    killed: AtomicBool,
    /// Notified when `hurry` is set.
    hurried: Notify,
}

impl Process {
    /// Makes the record of a process that was just started.
    pub fn new(
        pid: u32,
        tag: Option<String>,
        config: ProcessConfig,
        terminal: Option<AsyncFd<OwnedFd>>,
        input: InputTarget,
        exit: oneshot::Sender<ExitStatus>,
        memory_kills: u64,
    ) -> Self {
        Self {
            pid,
            tag,
            config,
            terminal,
            input: tokio::sync::Mutex::new(input),
            exit: Mutex::new(Some(exit)),
            subscribers: Mutex::new(Some(Vec::new())),
            hurry: AtomicBool::new(false),
            memory_kills,
            killed: AtomicBool::new(false),
            hurried: Notify::new(),
        }
    }

    /// Returns a receiver of all events from now on; `None` if the end has been delivered.
    pub fn subscribe(&self) -> Option<mpsc::Receiver<OutputEvent>> {
        // A slow reader blocks the process after this many pieces.
        let (sender, receiver) = mpsc::channel(8);
        lock(&self.subscribers).as_mut()?.push(sender);
        Some(receiver)
    }

    /// Sends an event to all subscribers. Waits for slow ones and removes those that have gone.
    pub async fn deliver(&self, event: OutputEvent) {
        let subscribers = lock(&self.subscribers).clone().unwrap_or_default();
        let mut left = false;
        for subscriber in &subscribers {
            left |= subscriber.send(event.clone()).await.is_err();
        }
        if left && let Some(subscribers) = lock(&self.subscribers).as_mut() {
            subscribers.retain(|subscriber| !subscriber.is_closed());
        }
    }

    /// Sends the end to all subscribers. No subscriptions are accepted from then on.
    pub async fn deliver_end(&self, end: EndEvent) {
        let subscribers = lock(&self.subscribers).take().unwrap_or_default();
        for subscriber in subscribers {
            let _ = subscriber.send(OutputEvent::End(end.clone())).await;
        }
    }

    /// From now on the end is delivered without waiting for inherited pipes.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
        self.hurried.notify_one();
    }

    /// Sends a signal, unless the process has been reaped: its id may belong to another process then.
    /// Afterwards the end is delivered without waiting for inherited pipes.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        self.hurry();
        if signal == Signal::KILL {
            self.killed.store(true, Ordering::Release);
        }
        let exit = lock(&self.exit);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        match (&*exit, pid) {
            (Some(_), Some(pid)) => rustix::process::kill_process(pid, signal),
            _ => Err(rustix::io::Errno::SRCH),
        }
    }

    /// The number of kills that counts for [`MemoryKills::explain`]; `None` if the process was killed on request.
    pub fn memory_kills(&self) -> Option<u64> {
        (!self.killed.load(Ordering::Acquire)).then_some(self.memory_kills)
    }

    /// Whether the end is delivered although other processes hold the pipes open.
    pub fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }

    /// Waits until `in_hurry` may have changed. Wake-ups may be spurious.
    pub async fn hurried(&self) {
        self.hurried.notified().await;
    }

    /// Whether the process has not been reaped yet.
    pub fn is_live(&self) -> bool {
        lock(&self.exit).is_some()
    }
}

/// The end of a process.
#[derive(Debug, Clone)]
struct EndedProcess {
    pid: u32,
    tag: Option<String>,
    end: EndEvent,
    at: Instant,
}

/// The result of a look-up.
#[derive(Debug)]
pub enum FoundProcess {
    /// The process runs, or still has output to deliver.
    Process(Arc<Process>),
    /// The process has ended; only its id and end are known.
    Ended(u32, EndEvent),
}

/// The processes of envd.
#[derive(Debug, Default)]
pub struct ProcessRegistry {
    /// By id. A process is kept until its end is delivered, or until a new process gets its id.
    processes: Mutex<HashMap<u32, Arc<Process>>>,
    /// Oldest first.
    ended: Mutex<VecDeque<EndedProcess>>,
    /// Kills for want of memory.
    pub memory_kills: MemoryKills,
}

impl ProcessRegistry {
    /// Locks the processes, which prevents reaping while a process is started and registered.
    pub fn lock_for_start(&self) -> MutexGuard<'_, HashMap<u32, Arc<Process>>> {
        lock(&self.processes)
    }

    /// Reaps all ended children, registered ones and orphans, and forwards the statuses of registered ones.
    pub fn reap(&self) {
        let processes = lock(&self.processes);
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let Some(process) =
                u32::try_from(pid.as_raw_nonzero().get()).ok().and_then(|pid| processes.get(&pid))
            else {
                continue;
            };
            if let Some(exit) = lock(&process.exit).take() {
                let _ = exit.send(ExitStatus::from_raw(status.as_raw()));
            }
        }
    }

    /// Remembers the end of a process; called just before the end is delivered. `reason` is appended to the error.
    pub fn ended(&self, process: &Arc<Process>, status: ExitStatus, reason: Option<&str>) -> EndEvent {
        let mut end = status::end_event(status);
        if let (Some(error), Some(reason)) = (&mut end.error, reason) {
            *error = format!("{error}: {reason}");
        }
        let mut ended = lock(&self.ended);
        forget_old(&mut ended);
        let tag = process.tag.clone();
        ended.push_back(EndedProcess { pid: process.pid, tag, end: end.clone(), at: Instant::now() });
        let mut processes = lock(&self.processes);
        if processes.get(&process.pid).is_some_and(|other| Arc::ptr_eq(other, process)) {
            processes.remove(&process.pid);
        }
        end
    }

    /// Returns the live processes, ordered by id.
    pub fn live(&self) -> Vec<Arc<Process>> {
        let mut live: Vec<_> = lock(&self.processes).values().filter(|p| p.is_live()).cloned().collect();
        live.sort_by_key(|process| process.pid);
        live
    }

    /// Whether a live process has the tag.
    pub fn has_tag(processes: &HashMap<u32, Arc<Process>>, tag: &str) -> bool {
        processes.values().any(|p| p.tag.as_deref() == Some(tag) && p.is_live())
    }

    /// Finds a process by a selector, ended processes included.
    pub fn find(&self, selector: &Selector) -> Option<FoundProcess> {
        let matches = |pid: u32, tag: &Option<String>| match selector {
            Selector::Pid(wanted) => pid == *wanted,
            Selector::Tag(wanted) => tag.as_deref() == Some(wanted),
        };
        let found = {
            let processes = lock(&self.processes);
            let mut matching = processes.values().filter(|p| matches(p.pid, &p.tag));
            let first = matching.next();
            // A process may get a tag while its last holder still delivers output: prefer the live process.
            first.into_iter().chain(matching).max_by_key(|p| p.is_live()).cloned()
        };
        if let Some(process) = found {
            return Some(FoundProcess::Process(process));
        }
        let mut ended = lock(&self.ended);
        forget_old(&mut ended);
        let last = ended.iter().rev().find(|ended| matches(ended.pid, &ended.tag))?;
        Some(FoundProcess::Ended(last.pid, last.end.clone()))
    }

    /// Finds a live process by a selector.
    pub fn find_live(&self, selector: &Selector) -> Option<Arc<Process>> {
        match self.find(selector)? {
            FoundProcess::Process(process) if process.is_live() => Some(process),
            _ => None,
        }
    }
}

fn forget_old(ended: &mut VecDeque<EndedProcess>) {
    while ended.front().is_some_and(|first| first.at.elapsed() > REMEMBERED || ended.len() >= MAX_REMEMBERED)
    {
        ended.pop_front();
    }
}
