//! Everything about a sandbox that does not depend on what will run in it, made ahead of time: user and network
//! namespaces, redirect rules, listening sockets, control groups, and a thread that waits in them.
//! Slots are used once. A pool keeps some ready; an empty pool only costs the time to make one.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use engine::EngineError;
use engine_host::uids::{RANGE_SIZE, owner_of};
use engine_host::{Group, tree_error};
use net::{Listeners, TcpListener};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use sys::{ChildStack, Namespace, spawn_child, with_effective_user};
use tracing::warn;

use crate::devices;
use crate::host::Host;
use crate::private::ReadyTree;

/// Work for a slot's thread.
type Job = Box<dyn FnOnce() + Send>;

/// A prepared place for one sandbox. Dropping it gives everything back.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) user_namespace: Namespace,
    pub(crate) network_namespace: Namespace,
    pub(crate) agent_listener: TcpListener,
    pub(crate) listeners: Listeners,
    /// The sandbox's `/dev`, attached nowhere yet.
    pub(crate) dev: OwnedFd,
    /// What its processes shall see as the id of their boot.
    pub(crate) inner_boot: String,
    /// The sandbox's tree, empty.
    pub(crate) tree: ReadyTree,
    /// Before the claim: while its thread lives the group cannot be removed.
    worker: Worker,
    pub(crate) claim: Claim,
}

/// The host objects that outlive the slot when a sandbox takes it: a uid range and a control group.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) host: Arc<Host>,
    pub(crate) uid_base: u32,
    pub(crate) group: Group,
    /// The slot's thread, ended or about to: the group cannot be removed before it has.
    thread: Option<JoinHandle<()>>,
    left: AtomicBool,
}

impl Claim {
    pub(crate) fn new(host: Arc<Host>, uid_base: u32, group: Group) -> Self {
        Self { host, uid_base, group, thread: None, left: AtomicBool::new(false) }
    }

    /// The host id that owns the sandbox's user namespace.
    pub(crate) fn owner(&self) -> u32 {
        owner_of(self.uid_base)
    }

    /// Leaves the objects to a sandbox that lives on without this server.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Ends every process in the group and waits, for a limited time, until none is left.
    pub(crate) fn end_processes(&self) -> io::Result<()> {
        self.group.kill()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if *self.left.get_mut() {
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Err(error) = self.group.remove() {
            // The sweeper finds it at the next start; until then nobody else may have its ids.
            warn!(group = self.group.name(), %error, "a control group could not be removed");
            return;
        }
        self.host.uids.release(self.uid_base);
    }
}

/// The parked thread; ends when its slot does.
#[derive(Debug)]
struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        // While it lives its version 1 groups cannot be removed.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Slot {
    /// Makes a slot: about a millisecond, and more on an idle version 1 host.
    pub(crate) fn prepare(host: &Arc<Host>) -> Result<Self, EngineError> {
        let uid_base =
            host.uids.take().ok_or_else(|| EngineError::Exhausted("every uid range is in use".into()))?;
        let group = Group::create(&host.hierarchies, &format!("s{uid_base:x}"));
        let group = group
            .inspect_err(|_| host.uids.release(uid_base))
            .map_err(EngineError::kernel("make a cgroup"))?;
        let claim = Claim::new(host.clone(), uid_base, group);
        let (user_namespace, network_namespace) =
            make_namespaces(uid_base).map_err(EngineError::kernel("make namespaces"))?;
        net::configure(&network_namespace).map_err(EngineError::kernel("configure the network"))?;
        let agent_listener = net::listen_in(&network_namespace, envd_api::PORT);
        let agent_listener = agent_listener.map_err(EngineError::kernel("listen for envd"))?;
        let listeners =
            Listeners::open(&network_namespace).map_err(EngineError::kernel("open the gateway"))?;
        let inner_boot = uuid::Uuid::new_v4().to_string();
        let dev =
            devices::make(user_namespace.as_fd(), &inner_boot).map_err(EngineError::kernel("make /dev"))?;
        let tree = ReadyTree::make(host, uid_base).map_err(tree_error("make a tree"))?;
        let worker = Worker::start(&claim.group).map_err(EngineError::kernel("start a slot's thread"))?;
        Ok(Self {
            user_namespace,
            network_namespace,
            agent_listener,
            listeners,
            dev,
            inner_boot,
            tree,
            worker,
            claim,
        })
    }

    /// Runs `job` on the slot's thread, so that what it clones is born in the slot's groups.
    pub(crate) fn run_on_thread<T: Send + 'static>(
        mut self,
        job: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> mpsc::Receiver<(Self, T)> {
        let (answer, receiver) = mpsc::channel();
        let jobs = self.worker.jobs.clone().expect("present until dropped");
        let run: Job = Box::new(move || {
            let result = job(&mut self);
            let _ = answer.send((self, result));
        });
        let _ = jobs.send(run);
        receiver
    }

    /// Takes the slot apart once its sandbox runs.
    pub(crate) fn into_parts(mut self) -> (Namespace, Listeners, Claim) {
        // It ends by itself now; waiting for that here would cost the create some time.
        self.claim.thread = self.worker.thread.take();
        (self.network_namespace, self.listeners, self.claim)
    }
}

impl Worker {
    fn start(group: &Group) -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (joined, ready) = mpsc::channel();
        let entrance = group.entrance();
        let thread = thread::Builder::new().name("slot".into()).stack_size(256 * 1024).spawn(move || {
            let _ = joined.send(entrance.enter());
            while let Ok(job) = todo.recv() {
                job();
            }
        })?;
        let worker = Self { jobs: Some(jobs), thread: Some(thread) };
        ready.recv().unwrap_or_else(|_| Err(io::Error::other("the slot's thread ended")))?;
        Ok(worker)
    }
}

/// Makes a user namespace with one range of ids mapped and a network namespace that it owns.
pub(crate) fn make_namespaces(uid_base: u32) -> io::Result<(Namespace, Namespace)> {
    extern "C" fn wait_for_the_end(parent: usize) -> ! {
        // A server that dies here must not leave us behind, nor us hold on to its files and locks.
        // SAFETY: these calls change this process only: the signal it gets when its parent ends, its own copy of
        // the descriptor table, its life.
        unsafe {
            let signal = libc::SIGKILL as usize;
            let _ = sys::syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, signal, 0, 0, 0, 0]);
            let _ = sys::syscall(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0, 0]);
            if sys::syscall(libc::SYS_getppid, [0; 6]) != Ok(parent) {
                let _ = sys::syscall(libc::SYS_exit_group, [0; 6]);
            }
        }
        loop {
            // SAFETY: sleeps until a signal comes; takes no pointers. A timeless `ppoll` exists on both architectures.
            let _ = unsafe { sys::syscall(libc::SYS_ppoll, [0; 6]) };
        }
    }
    let stack = ChildStack::new()?;
    let flags = (libc::CLONE_VM | libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u64;
    // SAFETY: the stack lives until the child is reaped below; the child only sleeps.
    let clone = || unsafe { spawn_child(flags, &stack, None, wait_for_the_end, std::process::id() as usize) };
    // The owner of a user namespace is whom the kernel charges for inotify, queues, signals and processes in it:
    // one owner a sandbox, or they would use up each other's shares and root's.
    let child = with_effective_user(owner_of(uid_base), clone)??;
    let map = format!("0 {uid_base} {RANGE_SIZE}");
    let made = fs::write(format!("/proc/{}/uid_map", child.pid), &map)
        .and_then(|()| fs::write(format!("/proc/{}/gid_map", child.pid), &map))
        .and_then(|()| {
            Ok((Namespace::of_process(child.pid, "user")?, Namespace::of_process(child.pid, "net")?))
        });
    if let Some(pid) = Pid::from_raw(child.pid) {
        // Neither can fail for a child that nobody has waited for, and the stack must outlive it.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    made
}

/// Keeps slots ready.
#[derive(Debug)]
pub(crate) struct Pool {
    host: Arc<Host>,
    state: Mutex<PoolState>,
    changed: Condvar,
    filler: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct PoolState {
    ready: VecDeque<Slot>,
    target: usize,
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, state: Mutex::default(), changed: Condvar::new(), filler: Mutex::default() })
    }

    /// Starts keeping `target` slots ready, on a thread that ends with [`Pool::stop`].
    pub(crate) fn fill(self: &Arc<Self>, target: usize) -> io::Result<()> {
        if target == 0 || std::mem::replace(&mut self.lock().target, target) != 0 {
            return Ok(());
        }
        let pool = self.clone();
        let filler = thread::Builder::new().name("slot-pool".into()).spawn(move || pool.keep_full())?;
        *self.filler.lock().unwrap_or_else(PoisonError::into_inner) = Some(filler);
        Ok(())
    }

    /// Takes a ready slot, if there is one.
    pub(crate) fn take_ready(&self) -> Option<Slot> {
        let slot = self.lock().ready.pop_front();
        self.changed.notify_all();
        slot
    }

    /// Gives every slot back and makes no more.
    pub(crate) fn stop(&self) {
        let slots = {
            let mut state = self.lock();
            state.target = 0;
            std::mem::take(&mut state.ready)
        };
        self.changed.notify_all();
        drop(slots);
        // It may be in the middle of making one.
        if let Some(filler) = self.filler.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = filler.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_full(&self) {
        loop {
            let is_full = |state: &mut PoolState| state.target != 0 && state.ready.len() >= state.target;
            let state = self.changed.wait_while(self.lock(), is_full).unwrap_or_else(PoisonError::into_inner);
            if state.target == 0 {
                return;
            }
            drop(state);
            match Slot::prepare(&self.host) {
                Ok(slot) => {
                    let mut state = self.lock();
                    if state.target != 0 {
                        state.ready.push_back(slot);
                    }
                }
                Err(error) => {
                    warn!(%error, "a slot could not be prepared; creates make their own until one is taken");
                    // Nothing tells when the host has recovered, but the next create is a good time to try again.
                    drop(self.changed.wait(self.lock()).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }
}
