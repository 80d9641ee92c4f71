//! Rust SDK for Cofferdam and for every other server with E2B's interface: the operations of the official SDKs, typed and async.
//! A [`Client`] holds a server's address and your credentials; a [`Sandbox`] is one computer on that server.
//! The REST interface, file contents and RPC share one HTTP connection pool.
//!
//! ```no_run
//! use cofferdam_client::{Client, CreateOptions, RunOptions, Sandbox};
//!
//! # async fn example() -> Result<(), cofferdam_client::Error> {
//! // E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL, E2B_DOMAIN
//! let client = Client::from_env()?;
//! let sandbox = Sandbox::create(&client, CreateOptions::new("base")).await?;
//!
//! sandbox.files().write("/home/user/hello.txt", "hello").await?;
//! let output = sandbox.commands().run("cat hello.txt", RunOptions::default()).await?;
//! assert_eq!(output.stdout_text(), "hello");
//!
//! sandbox.kill().await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod client;
mod commands;
mod config;
mod egress;
mod envd;
mod error;
mod events;
mod files;
mod lifecycle;
mod pool;
mod process;
mod pty;
mod rest;
mod sandbox;
mod secrets;
mod signature;
mod ssh_keys;
mod system;
mod teams;
mod templates;
mod transport;
mod uploads;
mod volumes;

pub use client::{ApiKey, Client, EngineCapabilities, EngineInfo, EngineName, NewApiKey, Team};
pub use commands::{Commands, ProcessInfo, RunOptions};
pub use config::ClientConfig;
pub use egress::SandboxConnections;
pub use error::Error;
pub use events::SandboxEvent;
pub use files::{EntryInfo, EntryKind, Files};
pub use lifecycle::{OnTimeout, PauseOptions, Snapshot, SnapshotFilter, SnapshotOptions};
pub use pool::PoolEntry;
pub use process::{Exit, Output, Process, ProcessEvent, RunningProcess};
pub use pty::{Pty, PtyOptions, PtySize};
pub use sandbox::{CreateOptions, ListOptions, Sandbox, SandboxInfo, SandboxState};
pub use secrets::Secret;
pub use signature::{Operation, SignedUrlOptions};
pub use ssh_keys::SshKey;
pub use system::Pruned;
pub use teams::{KillCount, TeamDetails, TeamEgress, TeamLimits, TeamSettings};
pub use templates::{
    BuildHandle, BuildInfo, BuildLine, BuildOptions, BuildPlan, BuildProgress, BuildReason, BuildStage,
    BuildStep, FilesLink, TemplateInfo,
};
pub use volumes::{Volume, VolumeEntry, VolumeFiles, VolumeMount, VolumeUsage};

/// The result of every call of this crate.
pub type Result<T> = std::result::Result<T, Error>;
