//! What is told of each connection out of a sandbox: who made it, where to, what became of it and how many bytes it had. Never what the
//! bytes were.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where connections are told when they end.
pub trait ConnectionLog: fmt::Debug + Send + Sync {
    /// Takes note of a connection. Called for each one on the threads that serve connections: must neither block nor grow.
    fn note(&self, connection: Connection);
}

/// A connection that has ended, or was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The sandbox.
    pub sandbox: String,
    /// Its team; 0 if it has none.
    pub team: u128,
    /// The name that its client sent, if the server has read it.
    pub host: Option<String>,
    /// The address; none if a name was given to a proxy or has no permitted address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What became of it.
    pub outcome: Outcome,
    /// Bytes to the host.
    pub sent: u64,
    /// Bytes from the host.
    pub received: u64,
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was made.
    Connected,
    /// A policy or limit refused it.
    Refused(&'static str),
    /// The host could not be connected to.
    Failed(Cow<'static, str>),
}

/// A connection on its way. It is told to the log when this is dropped, and has failed until it is known to be made.
#[derive(Debug)]
pub(crate) struct Note {
    log: Option<Arc<dyn ConnectionLog>>,
    connection: Connection,
}

impl Note {
    pub(crate) fn new(log: Option<Arc<dyn ConnectionLog>>, connection: Connection) -> Self {
        Self { log, connection }
    }

    pub(crate) fn refused(&mut self, reason: &'static str) {
        self.connection.outcome = Outcome::Refused(reason);
    }

    pub(crate) fn failed(&mut self, error: &dyn fmt::Display) {
        self.connection.outcome = Outcome::Failed(error.to_string().into());
    }

    /// It is not told.
    pub(crate) fn discard(mut self) {
        self.log = None;
    }

    /// It is made, to this address; none if a proxy was given the name.
    pub(crate) fn connected(&mut self, address: Option<IpAddr>) {
        self.connection.address = address;
        self.connection.outcome = Outcome::Connected;
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.note(self.connection.clone());
        }
    }
}

/// Bytes of all connections of one sandbox, both directions together, and how many it may have.
#[derive(Debug)]
pub(crate) struct Traffic {
    bytes: AtomicU64,
    limit: u64,
}

impl Traffic {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { bytes: AtomicU64::new(0), limit: limit.unwrap_or(u64::MAX) }
    }

    /// Counts from zero again.
    pub(crate) fn restart(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub(crate) fn is_used_up(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.limit
    }
}

/// Counts the bytes of one connection.
#[derive(Debug)]
pub(crate) struct Meter {
    note: Note,
    traffic: Arc<Traffic>,
}

impl Meter {
    pub(crate) fn new(note: Note, traffic: Arc<Traffic>) -> Self {
        Self { note, traffic }
    }

    pub(crate) fn sent(&mut self, bytes: usize) -> io::Result<()> {
        self.note.connection.sent += bytes as u64;
        self.add(bytes)
    }

    pub(crate) fn received(&mut self, bytes: usize) -> io::Result<()> {
        self.note.connection.received += bytes as u64;
        self.add(bytes)
    }

    fn add(&self, bytes: usize) -> io::Result<()> {
        let before = self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if before >= self.traffic.limit { Err(io::Error::other(TRAFFIC_USED_UP)) } else { Ok(()) }
    }
}

/// Why a connection is refused or ended when a sandbox has had all its bytes.
pub(crate) const TRAFFIC_USED_UP: &str = "the sandbox's limit of bytes is reached";

#[cfg(test)]
pub(crate) mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Keeps everything.
    #[derive(Debug, Default)]
    pub(crate) struct Noted(pub(crate) Mutex<Vec<Connection>>);

    impl ConnectionLog for Noted {
        fn note(&self, connection: Connection) {
            self.0.lock().push(connection);
        }
    }

    fn connection() -> Connection {
        Connection {
            sandbox: "i".to_owned(),
            team: 1,
            host: Some("a.org".to_owned()),
            address: None,
            port: 443,
            outcome: Outcome::Failed("ended early".into()),
            sent: 0,
            received: 0,
        }
    }

    #[test]
    fn a_connection_is_told_with_its_bytes_and_ended_at_the_limit() {
        let log = Arc::new(Noted::default());
        let traffic = Arc::new(Traffic::new(Some(100)));
        let mut note = Note::new(Some(Arc::<Noted>::clone(&log)), connection());
        note.connected(Some([1, 1, 1, 1].into()));
        let mut meter = Meter::new(note, Arc::clone(&traffic));
        meter.sent(60).unwrap();
        meter.received(60).unwrap();
        assert!(traffic.is_used_up() && meter.sent(1).is_err());
        assert!(log.0.lock().is_empty());
        traffic.restart();
        assert!(meter.sent(1).is_ok());
        drop(meter);
        let [told] = &log.0.lock()[..] else { panic!("not told once") };
        assert_eq!((told.sent, told.received, &told.outcome), (62, 60, &Outcome::Connected));
    }
}
