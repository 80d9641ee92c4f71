//! What clients and servers may use of the gateway. Beyond them a request is refused, or the oldest gives way.

use std::time::Duration;

/// Servers of one configuration.
pub(crate) const MAX_SERVERS: usize = 64;
/// Servers that run at the same time. The least recently used one is stopped for another and started again by its next call.
pub(crate) const MAX_RUNNING: usize = 8;
/// Servers that are installed and started at the same time: more only compete for the sandbox's processors.
pub(crate) const MAX_STARTING: usize = 4;
/// Sessions of clients. The least recently used one gives way.
pub(crate) const MAX_SESSIONS: usize = 64;
/// Connections of clients; further ones wait to be accepted.
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// Requests that one server works on. Further ones are refused.
pub(crate) const MAX_CALLS: usize = 32;
/// Names of one kind (tools, prompts, resources) of one server.
pub(crate) const MAX_NAMES: usize = 2_000;
/// A process of a server has at most this much memory of its own: what is beyond it fails to be allocated.
pub(crate) const SERVER_MEMORY: u64 = 2 << 30;
/// Starts of one server within `START_WINDOW`: one that ends again and again is refused for the rest of it.
pub(crate) const MAX_STARTS: usize = 6;
pub(crate) const START_WINDOW: Duration = Duration::from_secs(60);
/// Until when a server must have answered when it is started by a call.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(45);
/// Until when all servers must have answered at the gateway's start. SDKs wait 60 s.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(50);
/// How long `--config` waits for the gateway.
pub(crate) const DAEMON_TIMEOUT: Duration = Duration::from_secs(55);
/// A request to a server without a response or progress.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// A server that timed out must answer a ping within this time, or it is killed.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A session without requests ends. Its clock stands still while the sandbox is paused.
pub(crate) const SESSION_IDLE: Duration = Duration::from_secs(3600);
/// Until when a client must have sent the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The log file, before it begins anew; one older file is kept.
pub(crate) const LOG_BYTES: u64 = 4 << 20;
/// A request's body.
pub(crate) const MAX_REQUEST_BYTES: usize = 16 << 20;
/// One list (tools, prompts, …) of one server, as JSON.
pub(crate) const MAX_LIST_BYTES: usize = 4 << 20;
/// A request to a server, however much progress it makes.
pub(crate) const MAX_CALL_TIME: Duration = Duration::from_secs(3600);
/// How much of a program's errors is kept for messages, in bytes.
pub(crate) const MAX_WORDS: usize = 2_000;
