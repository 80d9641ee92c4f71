//! The wire contract of envd, the daemon in every sandbox: everything that envd and those who call it must agree on.
//! Without features it holds constants, the body of `POST /init` and the signatures of file links. The feature `rpc`
//! adds the messages and server traits of the two RPC services, generated from `proto/` at build time; `client` adds
//! the generated clients and a transport for them.

#![forbid(unsafe_code)]

#[cfg(feature = "access")]
pub mod access;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "rpc")]
mod generated;
pub mod headers;
mod init;
mod link;
pub mod paths;
#[cfg(feature = "access")]
pub mod query;

#[cfg(feature = "client")]
pub use client::ConnectionTransport;
#[cfg(feature = "rpc")]
pub use generated::{filesystem, process};
pub use init::InitRequest;
pub use link::{FileLink, Operation};

/// The port that envd listens on in every sandbox.
pub const PORT: u16 = 49983;

/// The version of E2B's envd whose behaviour ours has. Clients enable features by it.
pub const VERSION: &str = "0.6.13";
