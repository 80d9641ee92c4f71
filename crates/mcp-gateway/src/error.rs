//! Why the gateway, or one of its servers, does not start. The messages are what a client of the SDKs reads.

use std::io;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("say either --config <json> or a command; see mcp-gateway --help")]
    Usage,
    #[error("GATEWAY_ACCESS_TOKEN is not set: it is the bearer token that clients must send")]
    NoToken,
    #[error("these servers did not answer within {} s: {servers}. Install them when the template is built (mcp-gateway pull)", .after.as_secs())]
    NotReady { servers: String, after: Duration },
    #[error("the runtime does not start: {0}")]
    Runtime(io::Error),
    #[error("--config is not a JSON object of server names and option objects: {0}")]
    Config(String),
    #[error("{given} servers are configured, at most {most} are possible")]
    TooManyServers { given: usize, most: usize },
    #[error("{path}: {reason}")]
    Catalogue { path: String, reason: String },
    #[error(
        "server {0}: no such name in the catalogue (mcp-gateway list prints it). Other names are github/<owner>/<repository> and those of \
         /etc/mcp-gateway/servers.toml"
    )]
    Unknown(String),
    #[error(
        "server {0}: no npm or PyPI package is known for it, only a container image. Name a command of your own for it in \
         /etc/mcp-gateway/servers.toml (`[{0}]`, `command = [\"program\", \"argument\"]`), or use github/<owner>/<repository>"
    )]
    NoPackage(String),
    #[error("server {server}: option {option} is missing")]
    MissingOption { server: String, option: String },
    #[error("server {server}: unknown option {option}; it has {known}")]
    UnknownOption { server: String, option: String, known: String },
    #[error("server {server}: option {option} is {problem}")]
    BadOption { server: String, option: String, problem: &'static str },
    #[error("server {server}: {step} failed: {reason}")]
    Install { server: String, step: String, reason: String },
    #[error("server {server}: {reason}")]
    Start { server: String, reason: String },
    #[error("server {server} did not answer within {} s. {output}", .after.as_secs())]
    Silent { server: String, after: Duration, output: String },
    #[error("port {port} of this sandbox is taken ({source}): is a gateway running already?")]
    Port { port: u16, source: io::Error },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("the gateway did not answer within {} s; /var/log/mcp-gateway/gateway.log says what it did", .0.as_secs())]
    Late(Duration),
    #[error("{0}")]
    Gateway(String),
}

impl Error {
    /// Adds what was being done to an I/O error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
