//! The process service: start, attach, feed, signal, resize, list.
//! A process belongs to envd, never to the connection that asked for it.
//! `table` knows them, `output` reads them, `reaper` learns of their end, `service` speaks to clients.

pub mod input;
pub mod output;
pub mod pty;
pub mod reaper;
pub mod service;
pub mod start;
pub mod status;
pub mod stream;
pub mod table;
