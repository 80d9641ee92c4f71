//! This host as a node: whether it accepts new sandboxes, and what it has done so far. The operator may drain it before
//! maintenance; a restart makes it ready again. Statuses have the names of the wire contract.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{Control, ControlError};

/// Whether the node accepts new sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// It accepts them.
    Ready,
    /// It does not accept them, and is to be stopped when its sandboxes have ended.
    Draining,
    /// It does not accept them for now.
    Standby,
}

impl NodeStatus {
    /// Returns its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Standby => "standby",
        }
    }
}

/// Status and counters of the node.
#[derive(Debug)]
pub(crate) struct Node {
    status: Mutex<(NodeStatus, OffsetDateTime)>,
    instance: String,
    successes: AtomicU64,
    failures: AtomicU64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            status: Mutex::new((NodeStatus::Ready, OffsetDateTime::now_utc())),
            instance: ids::random_hex::<16>(),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

impl Node {
    fn status(&self) -> (NodeStatus, OffsetDateTime) {
        *self.status.lock()
    }

    /// Checks that the node accepts new sandboxes.
    pub(crate) fn admit(&self) -> Result<(), ControlError> {
        match self.status().0 {
            NodeStatus::Ready => Ok(()),
            other => Err(ControlError::Capacity(format!(
                "this node is {} and takes no new sandboxes until its operator sets it ready",
                other.as_str()
            ))),
        }
    }

    /// Counts a create by its outcome.
    pub(crate) fn count<T>(&self, outcome: &Result<T, ControlError>) {
        let counter = if outcome.is_ok() { &self.successes } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// State of the node, without the load of the host.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// Whether it accepts new sandboxes.
    pub status: NodeStatus,
    /// Since when it has this status.
    pub since: OffsetDateTime,
    /// Id of this server process.
    pub instance: String,
    /// Number of running sandboxes.
    pub sandboxes: usize,
    /// Processors allocated to them.
    pub allocated_cpu: u32,
    /// Memory allocated to them, MiB.
    pub allocated_memory_mib: u64,
    /// Creates that succeeded.
    pub successes: u64,
    /// Creates that failed.
    pub failures: u64,
    /// Starts in progress or waiting.
    pub starting: usize,
}

impl Control {
    /// Returns the state of the node.
    #[must_use]
    pub fn node(&self) -> NodeReport {
        let (status, since) = self.node.status();
        let mut report = NodeReport {
            status,
            since,
            instance: self.node.instance.clone(),
            sandboxes: 0,
            allocated_cpu: 0,
            allocated_memory_mib: 0,
            successes: self.node.successes.load(Ordering::Relaxed),
            failures: self.node.failures.load(Ordering::Relaxed),
            starting: self.launcher.queue.in_progress(),
        };
        for running in self.teams().iter().flat_map(|team| self.registry.running_of(team.id)) {
            let details = running.details();
            report.sandboxes += 1;
            report.allocated_cpu = report.allocated_cpu.saturating_add(details.cpu_count);
            report.allocated_memory_mib += u64::from(details.memory_mib);
        }
        report
    }

    /// Sets whether the node accepts new sandboxes.
    pub fn set_node_status(&self, status: NodeStatus) {
        let mut current = self.node.status.lock();
        if current.0 != status {
            *current = (status, OffsetDateTime::now_utc());
            tracing::info!(status = status.as_str(), "node status set");
        }
    }
}
