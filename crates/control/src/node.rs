//! This machine as one node: whether it takes new sandboxes, and what it has done so far.
//! The operator may drain it before work on the machine; a restart makes it ready again.
//! Names of states are the wire contract's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use crate::{Control, ControlError};

/// Whether the node takes new sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// It does.
    Ready,
    /// It does not, and is to be stopped when those it has are over.
    Draining,
    /// It does not for now.
    Standby,
}

impl NodeStatus {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Standby => "standby",
        }
    }
}

/// State and counts of the node.
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
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sandbox may be started.
    pub(crate) fn admit(&self) -> Result<(), ControlError> {
        match self.status().0 {
            NodeStatus::Ready => Ok(()),
            other => Err(ControlError::Capacity(format!(
                "this node is {} and takes no new sandboxes until its operator sets it ready",
                other.as_str()
            ))),
        }
    }

    /// Counts a start.
    pub(crate) fn count<T>(&self, outcome: &Result<T, ControlError>) {
        let counter = if outcome.is_ok() { &self.successes } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known of the node without looking at the machine.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// Whether it takes new sandboxes.
    pub status: NodeStatus,
    /// Since when.
    pub since: OffsetDateTime,
    /// This run of the server.
    pub instance: String,
    /// Running sandboxes.
    pub sandboxes: usize,
    /// Processors promised to them.
    pub allocated_cpu: u32,
    /// Memory promised to them, MiB.
    pub allocated_memory_mib: u64,
    /// Starts that worked.
    pub successes: u64,
    /// Starts that did not.
    pub failures: u64,
    /// Starts under way or waiting.
    pub starting: usize,
}

impl Control {
    /// The node and what runs on it.
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
            starting: self.starts.under_way(),
        };
        for live in self.teams().iter().flat_map(|team| self.table.running_of(team.id)) {
            let details = live.details();
            report.sandboxes += 1;
            report.allocated_cpu = report.allocated_cpu.saturating_add(details.cpu_count);
            report.allocated_memory_mib += u64::from(details.memory_mib);
        }
        report
    }

    /// Lets the node take new sandboxes, or not.
    pub fn set_node_status(&self, status: NodeStatus) {
        let mut current = self.node.status.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != status {
            *current = (status, OffsetDateTime::now_utc());
            tracing::info!(status = status.as_str(), "the node's status was set");
        }
    }
}
