//! envd, the daemon inside every sandbox: runs processes, moves files, watches directories.
//! It is PID 1 there, speaks Connect-RPC and REST on one port, and trusts its own root directory.
//! Unsafe code lives in `sys` and `alloc` alone.

#![deny(unsafe_code)]

pub mod alloc;
pub mod args;
pub mod auth;
pub mod clock;
pub mod filesystem;
pub mod logs;
pub mod paths;
pub mod process;
pub mod rest;
pub mod router;
pub mod server;
pub mod state;
pub mod sys;
pub mod users;
