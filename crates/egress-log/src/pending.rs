//! Connections that were counted and are not written yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use net::{Connection, Outcome};

use crate::Lines;
use crate::entry::{CONNECTED, EgressEntry};

/// Maximum number of kinds of a sandbox that are counted apart; further ones are counted together.
pub(crate) const MAX_KINDS: usize = 64;
/// Maximum number of kinds of all sandboxes. A kind takes up to a kilobyte.
const MAX_TOTAL: usize = 32 << 10;
/// Maximum length of a reason, bytes.
const MAX_REASON: usize = 200;

/// The connections of all sandboxes, by team and id.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    sandboxes: HashMap<(u128, String), HashMap<Kind, Counts>>,
    total: usize,
}

/// What connections have in common that are counted together.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Kind {
    host: Option<String>,
    address: Option<IpAddr>,
    port: u16,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    first: i64,
    connections: u64,
    sent: u64,
    received: u64,
}

impl Pending {
    pub(crate) fn add(&mut self, connection: Connection) {
        let Connection { sandbox, team, host, address, port, outcome, sent, received } = connection;
        let kinds = self.sandboxes.entry((team, sandbox)).or_default();
        let mut kind = Kind { host, address, port, outcome: Some(outcome) };
        if !kinds.contains_key(&kind) && (kinds.len() >= MAX_KINDS || self.total >= MAX_TOTAL) {
            kind = Kind::default();
        }
        let counts = kinds.entry(kind).or_insert_with(|| {
            self.total += 1;
            Counts { first: now(), connections: 0, sent: 0, received: 0 }
        });
        counts.connections += 1;
        counts.sent += sent;
        counts.received += received;
    }

    /// Returns the lines of one sandbox, and forgets them.
    pub(crate) fn take(&mut self, team: u128, sandbox: &str) -> Option<Lines> {
        let kinds = self.sandboxes.remove(&(team, sandbox.to_owned()))?;
        self.total -= kinds.len();
        Some(lines(kinds))
    }

    /// Returns the lines of all sandboxes.
    pub(crate) fn into_lines(self) -> impl Iterator<Item = ((u128, String), Lines)> {
        self.sandboxes.into_iter().map(|(sandbox, kinds)| (sandbox, lines(kinds)))
    }
}

fn lines(kinds: HashMap<Kind, Counts>) -> Lines {
    let entries = kinds.into_iter().map(|(kind, counts)| {
        let (verdict, reason) = match kind.outcome {
            None => ("various", Some("too many different connections to tell them apart".to_owned())),
            Some(Outcome::Connected) => (CONNECTED, None),
            Some(Outcome::Refused(reason)) => ("refused", Some(reason.to_owned())),
            Some(Outcome::Failed(reason)) => ("failed", Some(reason.chars().take(MAX_REASON).collect())),
        };
        EgressEntry {
            at: counts.first,
            host: kind.host,
            address: kind.address,
            port: kind.port,
            verdict: verdict.to_owned(),
            reason,
            connections: counts.connections,
            sent: counts.sent,
            received: counts.received,
        }
    });
    let mut lines: Lines = entries.map(|entry| entry.line()).collect();
    lines.sort_by_key(|line| line.at);
    lines
}

/// Returns the time, nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
