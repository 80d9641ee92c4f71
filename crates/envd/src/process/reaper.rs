//! Reaps every child that ends: the service's processes and, as PID 1, all orphans of the sandbox.
//! Only this module calls `wait`, so that no status is lost to another caller.
//! Starting a process holds the same lock as reaping, so a process is registered before it can be reaped.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::state::Envd;

/// Subscribes to SIGCHLD; from then on no ended child goes unnoticed.
pub fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps children; never returns.
pub async fn run(envd: Arc<Envd>, mut children: Signal) {
    loop {
        envd.processes.reap();
        if children.recv().await.is_none() {
            return;
        }
    }
}
