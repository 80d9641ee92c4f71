//! The rules of the control plane on an engine that is simulated. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod events;
mod lifecycle;
mod metrics;
mod pauses;
mod pool;
