//! [`Slot`]: the parts of a sandbox that do not depend on what will run in it, made in advance: user and network namespaces, redirect
//! rules, listening sockets, control groups, a `/dev`, an empty tree, and a thread that waits inside the control groups.
//! A slot is used once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use engine::EngineError;
use engine_host::{Group, tree_error};
use net::{Listeners, TcpListener};
use sys::Namespace;

use crate::devices;
use crate::echo::allow_limited_echo;
use crate::host::{Host, Lease};
use crate::namespaces::make_namespaces;
use crate::private_tree::PreparedTree;
use crate::processors::ProcessorShare;
use crate::resources::ResourceMounts;

/// Work for a slot's thread.
type Job = Box<dyn FnOnce() + Send>;

/// A prepared slot for one sandbox. Dropping it releases everything.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) user_namespace: Namespace,
    pub(crate) network_namespace: Namespace,
    pub(crate) envd_listener: TcpListener,
    pub(crate) listeners: Listeners,
    /// The sandbox's `/dev`, a detached mount.
    pub(crate) dev: OwnedFd,
    /// Mounts in which the sandbox sees its own size.
    pub(crate) resources: Option<ResourceMounts>,
    /// The processors that the sandbox is bound to, once its limits are known.
    pub(crate) processors: Option<ProcessorShare>,
    /// The boot id that the sandbox's processes will see.
    pub(crate) inner_boot: String,
    /// The sandbox's tree, empty.
    pub(crate) tree: PreparedTree,
    /// Dropped before the lease: while its thread lives the control group cannot be removed.
    worker: Worker,
    pub(crate) lease: Lease,
}

/// The thread that waits in the slot's version 1 control groups. It ends when its slot is dropped or taken apart.
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
    /// Makes a slot. Takes about a millisecond, and more on an idle host with version 1 control groups.
    ///
    /// # Errors
    /// [`EngineError::Exhausted`] when every range of ids is in use or the disk is full; or the step that failed.
    pub(crate) fn prepare(host: &Arc<Host>) -> Result<Self, EngineError> {
        let lease = Lease::take(host)?;
        let (user_namespace, network_namespace) =
            make_namespaces(lease.uid_base).map_err(EngineError::kernel("make namespaces"))?;
        net::configure(&network_namespace).map_err(EngineError::kernel("configure the network"))?;
        allow_limited_echo(host.echo_limit.as_ref(), &lease.group, &network_namespace);
        let envd_listener = net::listen_in(&network_namespace, envd_api::PORT)
            .map_err(EngineError::kernel("listen for envd"))?;
        let listeners =
            Listeners::open(&network_namespace).map_err(EngineError::kernel("open the gateway"))?;
        let inner_boot = uuid::Uuid::new_v4().to_string();
        let dev = devices::make_dev(user_namespace.as_fd(), &inner_boot)
            .map_err(EngineError::kernel("make /dev"))?;
        let resources = ResourceMounts::make(host, &lease.group, user_namespace.as_fd())
            .map_err(EngineError::kernel("mount the files that show the sandbox's size"))?;
        let tree = PreparedTree::create(host, lease.uid_base).map_err(tree_error("make a tree"))?;
        let worker = Worker::start(&lease.group).map_err(EngineError::kernel("start a slot's thread"))?;
        Ok(Self {
            user_namespace,
            network_namespace,
            envd_listener,
            listeners,
            dev,
            resources,
            processors: None,
            inner_boot,
            tree,
            worker,
            lease,
        })
    }

    /// Runs `job` on the slot's thread, so that the processes it clones are born in the slot's control groups. The slot and the
    /// job's result come back through the returned channel.
    pub(crate) fn run_on_thread<T: Send + 'static>(
        mut self,
        job: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> mpsc::Receiver<(Self, T)> {
        let (sender, receiver) = mpsc::channel();
        let jobs = self.worker.jobs.clone().expect("present until dropped");
        let run: Job = Box::new(move || {
            let result = job(&mut self);
            let _ = sender.send((self, result));
        });
        let _ = jobs.send(run);
        receiver
    }

    /// Takes the slot apart once its sandbox runs; returns what the sandbox needs further.
    pub(crate) fn into_parts(mut self) -> (Namespace, Listeners, Option<ProcessorShare>, Lease) {
        // The thread ends now. Waiting for that is left to the drop of the lease: here it would cost the create some time.
        self.lease.wait_for_thread(self.worker.thread.take());
        (self.network_namespace, self.listeners, self.processors, self.lease)
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
