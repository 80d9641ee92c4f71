//! Collects every child that ends: the service's processes, and as PID 1 all orphans of the sandbox.
//! There is exactly one caller of `wait` in envd, so that no status is ever lost to a second one.
//! Starting a process holds the same lock as reaping, so a status cannot come before its process is known.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::state::Envd;

/// Subscribes to the news of ended children; from here on none goes unnoticed.
pub fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps for ever.
pub async fn run(envd: Arc<Envd>, mut children: Signal) {
    loop {
        envd.processes.reap();
        if children.recv().await.is_none() {
            return;
        }
    }
}
