//! The program as its users run it. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod cli;
mod common;
mod lifecycle;
mod postgres;
mod sdk;
mod telemetry;
