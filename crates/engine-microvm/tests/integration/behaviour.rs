//! The microVM engine against the behaviour suite of all engines, in emulation: it works on every machine.
//! Every test has its own data directory and leaves no group, mount or process.
//! What only this engine promises is tested beside this.

use std::path::PathBuf;

use crate::common::{assert_nothing_left, bench, config};

engine::behaviours!(bench, assert_nothing_left);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_boots_a_guest_and_leaves_nothing() {
    let data = tempfile::tempdir().expect("a directory");
    let dir = data.path().join("probe");
    engine_microvm::probe(&config(PathBuf::new()), &dir).await.expect("a guest boots");
    assert!(!dir.exists());
}
