//! [`Budgets`]: how the server's descriptors and memory are divided. Everything that clients and sandboxes can multiply has a total here; what is left over
//! is the reserve for the server itself, its database and the operator.

use std::sync::Arc;

use budget::Budget;
use engine_host::HostTotals;
use rustix::process::{Resource, getrlimit};

/// Memory that a connection may cost the server when it is busy, bytes.
const CONNECTION_MEMORY: u64 = 512 << 10;
/// Most connections of a kind, whatever the host has.
const MAX_CONNECTIONS: u64 = 65_536;

/// The totals of what clients and sandboxes share.
#[derive(Debug, Clone)]
pub(crate) struct Budgets {
    /// Accepted connections of clients.
    pub(crate) clients: Arc<Budget>,
    /// Connections from the server to servers in sandboxes.
    pub(crate) to_sandboxes: Arc<Budget>,
    /// Connections from sandboxes to the outside.
    pub(crate) outgoing: Arc<Budget>,
}

impl Budgets {
    /// Divides what this process has now. `max` is the operator's limit of connections of each kind.
    pub(crate) fn of_this_process(max: Option<usize>) -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), max)
    }

    /// Divides the descriptors of a process on this host.
    pub(crate) fn of(descriptors: u64, max: Option<usize>) -> Self {
        let memory = HostTotals::read().map_or(1 << 30, |host| host.memory);
        let [clients, to_sandboxes, outgoing] =
            divide(descriptors, memory).map(|total| total.min(max.unwrap_or(usize::MAX)));
        Self {
            clients: Budget::new("client connections", clients),
            to_sandboxes: Budget::new("connections to sandboxes", to_sandboxes),
            outgoing: Budget::new("outgoing connections", outgoing),
        }
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> [&Arc<Budget>; 3] {
        [&self.clients, &self.to_sandboxes, &self.outgoing]
    }
}

/// Returns the totals of connections of clients, to sandboxes, and out of sandboxes, each of which costs two descriptors. Of the descriptors an eighth is
/// for each of the three; the sandboxes themselves, which need about ten each, may have half; the last eighth is the reserve. Of the memory all together may
/// need a quarter.
fn divide(descriptors: u64, memory: u64) -> [usize; 3] {
    let by_memory = memory / 12 / CONNECTION_MEMORY;
    let total = |each: u64| {
        let count = (descriptors / 8 / each).min(by_memory).clamp(16, MAX_CONNECTIONS);
        usize::try_from(count).unwrap_or(usize::MAX)
    };
    [total(1), total(1), total(2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_memory_both_limit() {
        assert_eq!(divide(20_000, 24 << 30), [2500, 2500, 1250]);
        assert_eq!(divide(1 << 20, 24 << 30), [4096, 4096, 4096]);
        assert_eq!(divide(1024, 512 << 20), [85, 85, 64]);
        for (descriptors, memory) in [(1024, 1 << 30), (20_000, 8 << 30), (1 << 20, 1 << 40)] {
            let [clients, inward, outgoing] = divide(descriptors, memory);
            let used = (clients + inward + 2 * outgoing) as u64;
            assert!(used <= descriptors * 3 / 8 + 96, "{descriptors}: {used}");
        }
    }
}
