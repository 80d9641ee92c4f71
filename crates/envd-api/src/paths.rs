//! Paths of envd's HTTP interface.

/// `GET`: whether envd is up. Needs no token.
pub const HEALTH: &str = "/health";
/// `GET`: what the sandbox uses of its processors, memory and disk.
pub const METRICS: &str = "/metrics";
/// `GET`: environment variables of the sandbox.
pub const ENVS: &str = "/envs";
/// `GET` and `POST`: file contents.
pub const FILES: &str = "/files";
/// `POST`: joins uploaded parts to one file.
pub const FILES_COMPOSE: &str = "/files/compose";
/// `POST`: settings, see [`InitRequest`](crate::InitRequest). Reserved for the control plane.
pub const INIT: &str = "/init";
/// `GET`: a stream of envd's log lines. Reserved for the control plane.
pub const LOGS: &str = "/logs";

/// Prefix of the RPC methods on processes.
pub const PROCESS_SERVICE: &str = "/process.Process/";
/// RPC method that starts a process and streams its output.
pub const START_PROCESS: &str = "/process.Process/Start";
/// Prefix of the RPC methods on files.
pub const FILESYSTEM_SERVICE: &str = "/filesystem.Filesystem/";

/// Paths that only the control plane may request. The edge refuses them to clients; our envd does not serve all of
/// them, but E2B's does.
pub const RESERVED: [&str; 8] =
    [INIT, LOGS, "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"];
