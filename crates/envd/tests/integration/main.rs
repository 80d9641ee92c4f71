//! envd as a process of its own, spoken to over HTTP. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;
mod files;
mod filesystem;
mod fuzz;
mod hostile;
mod process;
mod rest;
