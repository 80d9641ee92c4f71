//! The egress log: which hosts sandboxes connected to or were refused, how often and with how many bytes. Connections that are alike are
//! counted together for some seconds and then become one line of the sandbox's file in a [`LogStore`], so that neither memory nor the disk
//! grows with the number of connections that a sandbox makes.
#![forbid(unsafe_code)]

mod entry;
mod pending;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ids::{SandboxId, TeamId};
use logs::{LogLine, LogQuery, LogStore};
use net::{Connection, ConnectionLog};
use parking_lot::Mutex;

pub use entry::EgressEntry;
use pending::Pending;

/// How long connections are counted before they are written.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// The egress log of a server.
#[derive(Debug)]
pub struct EgressLog {
    store: LogStore,
    pending: Mutex<Pending>,
    /// Held while lines are written, so that a reader finds what it was told before.
    writing: Mutex<()>,
}

impl EgressLog {
    /// A log below `root`, which is written on the current runtime until it is dropped.
    #[must_use]
    pub fn start(root: PathBuf) -> Arc<Self> {
        let log = Arc::new(Self::new(root));
        let weak = Arc::downgrade(&log);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(WRITE_EVERY).await;
                let Some(log) = weak.upgrade() else { return };
                let _ = tokio::task::spawn_blocking(move || log.write()).await;
            }
        });
        log
    }

    fn new(root: PathBuf) -> Self {
        Self { store: LogStore::new(root), pending: Mutex::default(), writing: Mutex::default() }
    }

    /// Writes what was counted. Blocks.
    pub fn write(&self) {
        let _writing = self.writing.lock();
        let pending = std::mem::take(&mut *self.pending.lock());
        for ((team, sandbox), lines) in pending.into_lines() {
            self.store.append(TeamId::from_u128(team), &sandbox, &lines);
        }
    }

    /// Returns the entries of a sandbox, running or ended, that match a query. Connections that are open have none yet. Blocks.
    #[must_use]
    pub fn read(&self, team: TeamId, sandbox: &SandboxId, query: &LogQuery) -> Vec<EgressEntry> {
        let _writing = self.writing.lock();
        let own = self.pending.lock().take(team.as_u128(), sandbox.as_str());
        if let Some(lines) = own {
            self.store.append(team, sandbox.as_str(), &lines);
        }
        self.store.read(team, sandbox.as_str(), query).iter().filter_map(EgressEntry::parse).collect()
    }

    /// Removes the files of sandboxes that have not connected to anything for `retention`. Blocks.
    pub fn forget(&self, retention: Duration) {
        self.store.forget(retention);
    }
}

impl ConnectionLog for EgressLog {
    fn note(&self, connection: Connection) {
        // Builds and pre-started sandboxes have no owner who could ask.
        if connection.team != 0 {
            self.pending.lock().add(connection);
        }
    }
}

impl Drop for EgressLog {
    fn drop(&mut self) {
        self.write();
    }
}

/// Lines of one sandbox.
type Lines = Vec<LogLine>;

#[cfg(test)]
mod tests {
    use logs::LogLevel;
    use net::Outcome;

    use super::*;

    fn query() -> LogQuery {
        LogQuery {
            from: 0,
            to: i64::MAX,
            newest_first: false,
            level: LogLevel::Debug,
            search: None,
            limit: 1000,
        }
    }

    fn connection(team: TeamId, sandbox: &SandboxId, host: &str, outcome: Outcome) -> Connection {
        Connection {
            sandbox: sandbox.to_string(),
            team: team.as_u128(),
            host: Some(host.to_owned()),
            address: Some([192, 0, 2, 7].into()),
            port: 443,
            outcome,
            sent: 10,
            received: 100,
        }
    }

    #[test]
    fn like_connections_are_one_entry_and_belong_to_their_team() {
        let dir = tempfile::tempdir().unwrap();
        let log = EgressLog::new(dir.path().to_owned());
        let (team, sandbox) = (TeamId::generate(), SandboxId::generate());
        for _ in 0..3 {
            log.note(connection(team, &sandbox, "a.org", Outcome::Connected));
        }
        log.note(connection(team, &sandbox, "b.org", Outcome::Refused("the name is denied")));
        let entries = log.read(team, &sandbox, &query());
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.host.as_deref(), e.verdict.as_str(), e.connections, e.received))
            .collect();
        assert!(seen.contains(&(Some("a.org"), "connected", 3, 300)), "{seen:?}");
        assert!(seen.contains(&(Some("b.org"), "refused", 1, 100)), "{seen:?}");
        assert_eq!(seen.len(), 2);
        let refused = entries.iter().find(|entry| entry.verdict == "refused").unwrap();
        assert_eq!(refused.reason.as_deref(), Some("the name is denied"));
        assert!(log.read(TeamId::generate(), &sandbox, &query()).is_empty(), "another team sees it");
        // What comes later is another entry.
        log.note(connection(team, &sandbox, "a.org", Outcome::Connected));
        assert_eq!(log.read(team, &sandbox, &query()).len(), 3);
    }

    #[test]
    fn a_sandbox_that_connects_to_everything_adds_a_bounded_number_of_entries() {
        let dir = tempfile::tempdir().unwrap();
        let log = EgressLog::new(dir.path().to_owned());
        let (team, sandbox) = (TeamId::generate(), SandboxId::generate());
        for number in 0..5000 {
            log.note(connection(team, &sandbox, &format!("{number}.org"), Outcome::Connected));
        }
        let entries = log.read(team, &sandbox, &query());
        assert!(entries.len() <= pending::MAX_KINDS + 1, "{}", entries.len());
        assert_eq!(entries.iter().map(|entry| entry.connections).sum::<u64>(), 5000);
        let others = entries.iter().find(|entry| entry.host.is_none()).unwrap();
        assert_eq!(others.address, None, "the others have no one address");
    }

    #[test]
    fn connections_without_a_team_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = EgressLog::new(dir.path().to_owned());
        log.note(connection(TeamId::from_u128(0), &SandboxId::generate(), "a.org", Outcome::Connected));
        log.write();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
