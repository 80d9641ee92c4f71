//! The behaviour suite of all engines, run against the microVM engine in emulation, which works on
//! every host.
//!
//! Every test has a data directory of its own and leaves no control group, mount or process. What
//! only this engine promises is tested in the other modules.

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
