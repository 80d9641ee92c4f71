//! [`HostLease`]: the host's resources that a sandbox holds besides its process: a range of user ids and a control group.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use engine::{EngineError, SandboxId};
use tracing::warn;

use crate::uids::namespace_owner;
use crate::{Group, HostResources};

/// A range of user ids and a control group, held for one sandbox. Dropping the lease kills all processes in the group and releases
/// range and group, unless [`HostLease::leave`] left them to a later server.
#[derive(Debug)]
pub struct HostLease<H: Deref<Target = HostResources>> {
    /// The engine's host.
    pub host: Arc<H>,
    /// First id of the range.
    pub uid_base: u32,
    /// The control group.
    pub group: Group,
    /// A thread inside the group that has ended or ends soon. The group cannot be removed before the thread has ended.
    thread: Option<JoinHandle<()>>,
    was_killed: AtomicBool,
    is_left: AtomicBool,
}

impl<H: Deref<Target = HostResources>> HostLease<H> {
    /// Takes a free range of ids and creates a control group, named after the range.
    ///
    /// # Errors
    /// [`EngineError::Exhausted`] when every range is in use; or the group cannot be created.
    pub fn take(host: &Arc<H>) -> Result<Self, EngineError> {
        let uid_base = host
            .uids
            .take()
            .ok_or_else(|| EngineError::Exhausted("every range of user ids is in use".into()))?;
        let group = Group::create(&host.hierarchies, &group_name(uid_base))
            .inspect_err(|_| host.uids.release(uid_base))
            .map_err(EngineError::kernel("make a control group"))?;
        Ok(Self::new(host.clone(), uid_base, group))
    }

    /// The lease of a sandbox that an earlier server started.
    pub fn adopt(host: &Arc<H>, uid_base: u32, group: Group) -> Self {
        host.uids.reserve(uid_base);
        Self::new(host.clone(), uid_base, group)
    }

    fn new(host: Arc<H>, uid_base: u32, group: Group) -> Self {
        Self {
            host,
            uid_base,
            group,
            thread: None,
            was_killed: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
        }
    }

    /// Returns the host id that owns the sandbox's user namespace.
    pub fn namespace_owner(&self) -> u32 {
        namespace_owner(self.uid_base)
    }

    /// Makes the drop wait for a thread that is still inside the group.
    pub fn wait_for_thread(&mut self, thread: Option<JoinHandle<()>>) {
        self.thread = thread;
    }

    /// Leaves ids and group to a sandbox that continues to run without this server: dropping the lease does nothing then.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Kills every process in the group and waits, for a limited time, until none is left. If a process does not die, logs this and
    /// returns false; see [`HostLease::release_when_empty`].
    pub fn kill_processes(&self, id: &SandboxId) -> bool {
        match self.kill() {
            Ok(()) => true,
            Err(error) => {
                warn!(sandbox_id = %id, %error, "a process of an ended sandbox does not die");
                false
            }
        }
    }

    /// Waits, however long, until the killed processes of the group are gone, then releases ids and group. Until then no other
    /// sandbox can have them. If the server ends before, the sweep of the next start tries again.
    pub async fn release_when_empty(self: Arc<Self>)
    where
        H: Send + Sync + 'static,
    {
        if let Err(error) = self.group.wait_until_empty().await {
            warn!(group = self.group.name(), %error, "failed to wait for the processes of an ended sandbox");
        }
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn kill(&self) -> io::Result<()> {
        self.was_killed.store(true, Ordering::Relaxed);
        self.group.kill()
    }
}

impl<H: Deref<Target = HostResources>> Drop for HostLease<H> {
    fn drop(&mut self) {
        if *self.is_left.get_mut() {
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let killed = if *self.was_killed.get_mut() { Ok(()) } else { self.kill() };
        if let Err(error) = killed.and_then(|()| self.group.remove()) {
            // The sweep of the next start removes it; until then no other sandbox may have its ids.
            warn!(group = self.group.name(), %error, "failed to remove a control group");
            return;
        }
        self.host.uids.release(self.uid_base);
    }
}

/// Name of the control group of the range of ids that begins at `uid_base`.
#[must_use]
pub fn group_name(uid_base: u32) -> String {
    format!("s{uid_base:x}")
}

/// Returns the first id of the range whose control group has this name.
#[must_use]
pub fn uid_base_of(group: &str) -> Option<u32> {
    u32::from_str_radix(group.strip_prefix('s')?, 16).ok()
}
