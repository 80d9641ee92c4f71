//! envd, the daemon in every sandbox: runs processes, transfers files, watches directories.
//! It is PID 1 of the sandbox and serves Connect-RPC and REST on one port.
//! Only `sys` and `alloc` contain unsafe code.

#![deny(unsafe_code)]

pub mod alloc;
pub mod args;
pub mod auth;
pub mod clock;
pub mod connect;
pub mod filesystem;
pub mod identity;
pub mod listen;
pub mod logs;
pub mod pack;
pub mod paths;
pub mod process;
pub mod rest;
pub mod router;
pub mod server;
pub mod state;
pub mod sys;
pub mod users;
