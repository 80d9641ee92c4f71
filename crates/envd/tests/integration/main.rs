//! Tests of envd as a separate process, over HTTP. They are one binary, so that it is linked once.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod client;
mod common;
mod files;
mod filesystem;
mod fuzz;
mod process;
mod rest;
mod rights;
mod untrusted;
