//! An entry of the log, and the log line that it is kept as.

use std::collections::BTreeMap;
use std::net::IpAddr;

use logs::{LogLevel, LogLine};

/// Connections of one sandbox to one host with one outcome, within some seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressEntry {
    /// When the first of them ended, nanoseconds since 1970.
    pub at: i64,
    /// The name that the client sent, if the server has read it.
    pub host: Option<String>,
    /// The address; none if a proxy was given the name, if the name has no permitted address, and for what was too much to be told one by
    /// one.
    pub address: Option<IpAddr>,
    /// The port; 0 for what was too much to be told one by one.
    pub port: u16,
    /// `connected`, `refused`, `failed`, or `various` for what was too much to be told one by one.
    pub verdict: String,
    /// Why it was refused or failed.
    pub reason: Option<String>,
    /// Number of connections.
    pub connections: u64,
    /// Bytes to the host.
    pub sent: u64,
    /// Bytes from the host.
    pub received: u64,
}

impl EgressEntry {
    pub(crate) fn line(&self) -> LogLine {
        let mut fields = BTreeMap::new();
        let mut set = |name: &str, value: Option<String>| {
            fields.extend(value.map(|value| (name.to_owned(), value)));
        };
        set("host", self.host.clone());
        set("address", self.address.map(|address| address.to_string()));
        set("port", Some(self.port.to_string()));
        set("reason", self.reason.clone());
        set("connections", Some(self.connections.to_string()));
        set("sent", Some(self.sent.to_string()));
        set("received", Some(self.received.to_string()));
        let level = if self.verdict == CONNECTED { LogLevel::Info } else { LogLevel::Warn };
        LogLine { at: self.at, level, logger: "egress".to_owned(), message: self.verdict.clone(), fields }
    }

    pub(crate) fn parse(line: &LogLine) -> Option<Self> {
        let field = |name: &str| line.fields.get(name);
        let count = |name: &str| field(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(Self {
            at: line.at,
            host: field("host").cloned(),
            address: field("address").and_then(|address| address.parse().ok()),
            port: field("port")?.parse().ok()?,
            verdict: line.message.clone(),
            reason: field("reason").cloned(),
            connections: count("connections"),
            sent: count("sent"),
            received: count("received"),
        })
    }
}

/// The verdict of connections that were made.
pub(crate) const CONNECTED: &str = "connected";
