//! REST calls against the router, without a network. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;
mod events;
mod identity;
mod limits;
mod metrics;
mod openapi;
mod rest;
