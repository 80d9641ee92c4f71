//! All processes that clients can select: the live ones, and for a while those that have ended.
//! A process is live until the reaper has its status, and attachable until its last output is delivered.
//! Look-ups by tag prefer the live process, then the one that ended last.

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

use crate::process::status;
use crate::state::lock;

/// How long an ended process can still be attached to.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How many ended processes are remembered at most.
const MAX_REMEMBERED: usize = 1024;

/// What a subscriber receives.
#[derive(Debug, Clone)]
pub enum Event {
    /// From standard output.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// From the terminal.
    Pty(Bytes),
    /// The last event.
    End(EndEvent),
}

/// Where a process' input goes.
#[derive(Debug)]
pub enum Input {
    /// The write end of its standard input; `None` once closed, or never open.
    Pipe(Option<AsyncFd<OwnedFd>>),
    /// The terminal's master side is used.
    Terminal,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its id in the sandbox.
    pub pid: u32,
    /// The client's name for it.
    pub tag: Option<String>,
    /// What the client asked for.
    pub config: ProcessConfig,
    /// Master side of its terminal, if it has one.
    pub terminal: Option<AsyncFd<OwnedFd>>,
    /// Writers take turns.
    pub input: tokio::sync::Mutex<Input>,
    /// Told that the process ended; taken by the reaper.
    exit: Mutex<Option<oneshot::Sender<ExitStatus>>>,
    /// Receivers of output. Closed (`None`) once the end was delivered.
    subscribers: Mutex<Option<Vec<mpsc::Sender<Event>>>>,
    /// Set when the end must not wait for others that hold the pipes open.
    hurry: AtomicBool,
    /// Tells of a change of `hurry`.
    hurried: Notify,
}

impl Process {
    /// A process that has just been started.
    pub fn new(
        pid: u32,
        tag: Option<String>,
        config: ProcessConfig,
        terminal: Option<AsyncFd<OwnedFd>>,
        input: Input,
        exit: oneshot::Sender<ExitStatus>,
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
            hurried: Notify::new(),
        }
    }

    /// A receiver of everything from now on; `None` if the end has been delivered.
    pub fn subscribe(&self) -> Option<mpsc::Receiver<Event>> {
        // A slow reader holds the process back after this many pieces.
        let (sender, receiver) = mpsc::channel(8);
        lock(&self.subscribers).as_mut()?.push(sender);
        Some(receiver)
    }

    /// Delivers to all subscribers, waiting for the slow ones and forgetting those that left.
    pub async fn deliver(&self, event: Event) {
        let subscribers = lock(&self.subscribers).clone().unwrap_or_default();
        let mut left = false;
        for subscriber in &subscribers {
            left |= subscriber.send(event.clone()).await.is_err();
        }
        if left && let Some(subscribers) = lock(&self.subscribers).as_mut() {
            subscribers.retain(|subscriber| !subscriber.is_closed());
        }
    }

    /// Delivers the end, and accepts no subscribers from then on.
    pub async fn deliver_end(&self, end: EndEvent) {
        let subscribers = lock(&self.subscribers).take().unwrap_or_default();
        for subscriber in subscribers {
            let _ = subscriber.send(Event::End(end.clone())).await;
        }
    }

    /// Sends a signal, unless the process has been reaped: its id may then be another's.
    /// Afterwards the end is delivered without waiting for inherited pipes.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        self.hurry.store(true, Ordering::Release);
        self.hurried.notify_one();
        let exit = lock(&self.exit);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        match (&*exit, pid) {
            (Some(_), Some(pid)) => rustix::process::kill_process(pid, signal),
            _ => Err(rustix::io::Errno::SRCH),
        }
    }

    /// Whether the end may overtake others that hold the pipes open.
    pub fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }

    /// Waits for a reason to hurry. Wake-ups may come early: look at `in_hurry`.
    pub async fn hurried(&self) {
        self.hurried.notified().await;
    }

    /// Whether the process has not been reaped yet.
    pub fn is_live(&self) -> bool {
        lock(&self.exit).is_some()
    }
}

/// A process that can no longer be attached to live.
#[derive(Debug, Clone)]
struct Ended {
    pid: u32,
    tag: Option<String>,
    end: EndEvent,
    at: Instant,
}

/// What a selector leads to.
#[derive(Debug)]
pub enum Found {
    /// Running, or with output still under way.
    Process(Arc<Process>),
    /// Over; its id and end are all that is left.
    Ended(u32, EndEvent),
}

/// The processes.
#[derive(Debug, Default)]
pub struct Table {
    /// By id. A process stays until its end is delivered, or until a new one gets its id.
    processes: Mutex<HashMap<u32, Arc<Process>>>,
    /// Oldest first.
    ended: Mutex<VecDeque<Ended>>,
}

impl Table {
    /// Takes the table, and thereby keeps the reaper out, while a process is started and recorded.
    pub fn lock_for_start(&self) -> MutexGuard<'_, HashMap<u32, Arc<Process>>> {
        lock(&self.processes)
    }

    /// Reaps all that can be reaped, ours and orphans, and passes our processes' statuses on.
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

    /// Remembers the end of a process, just before the end is delivered.
    pub fn ended(&self, process: &Arc<Process>, status: ExitStatus) -> EndEvent {
        let end = status::end_event(status);
        let mut ended = lock(&self.ended);
        forget_old(&mut ended);
        let tag = process.tag.clone();
        ended.push_back(Ended { pid: process.pid, tag, end: end.clone(), at: Instant::now() });
        let mut processes = lock(&self.processes);
        if processes.get(&process.pid).is_some_and(|other| Arc::ptr_eq(other, process)) {
            processes.remove(&process.pid);
        }
        end
    }

    /// The live processes, by id.
    pub fn live(&self) -> Vec<Arc<Process>> {
        let mut live: Vec<_> = lock(&self.processes).values().filter(|p| p.is_live()).cloned().collect();
        live.sort_by_key(|process| process.pid);
        live
    }

    /// Whether a live process has that tag.
    pub fn has_tag(processes: &HashMap<u32, Arc<Process>>, tag: &str) -> bool {
        processes.values().any(|p| p.tag.as_deref() == Some(tag) && p.is_live())
    }

    /// What the selector leads to, ended processes included.
    pub fn find(&self, selector: &Selector) -> Option<Found> {
        let matches = |pid: u32, tag: &Option<String>| match selector {
            Selector::Pid(wanted) => pid == *wanted,
            Selector::Tag(wanted) => tag.as_deref() == Some(wanted),
        };
        let found = {
            let processes = lock(&self.processes);
            let mut matching = processes.values().filter(|p| matches(p.pid, &p.tag));
            let first = matching.next();
            // A tag can be taken over while its last holder still delivers output: prefer the live one.
            first.into_iter().chain(matching).max_by_key(|p| p.is_live()).cloned()
        };
        if let Some(process) = found {
            return Some(Found::Process(process));
        }
        let mut ended = lock(&self.ended);
        forget_old(&mut ended);
        let last = ended.iter().rev().find(|ended| matches(ended.pid, &ended.tag))?;
        Some(Found::Ended(last.pid, last.end.clone()))
    }

    /// The live process a selector leads to.
    pub fn find_live(&self, selector: &Selector) -> Option<Arc<Process>> {
        match self.find(selector)? {
            Found::Process(process) if process.is_live() => Some(process),
            _ => None,
        }
    }
}

fn forget_old(ended: &mut VecDeque<Ended>) {
    while ended.front().is_some_and(|first| first.at.elapsed() > REMEMBERED || ended.len() >= MAX_REMEMBERED)
    {
        ended.pop_front();
    }
}
