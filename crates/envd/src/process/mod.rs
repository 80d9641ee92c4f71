//! The process service: start, attach to, write to, signal, resize and list processes.
//! A process belongs to envd, not to the connection that started it.
//! `registry` holds the processes, `output` reads their output, `reaper` collects their exit statuses, and
//! `service` implements the RPC methods.

pub mod input;
pub mod memory_kill;
pub mod output;
pub mod pty;
pub mod reaper;
pub mod registry;
pub mod service;
pub mod start;
pub mod status;
pub mod stream;
