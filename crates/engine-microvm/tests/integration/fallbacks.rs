//! The fallbacks: machine type `q35`, for hosts where guests do not boot on `microvm`, and memory
//! as a stream, for hosts where its pages cannot be read. Each is booted, cloned, captured and
//! restored.
//!
//! Everything else about them is tested by the behaviour suite with the default settings.

use std::path::Path;
use std::sync::Arc;

use crate::common::{assert_nothing_left, bench, config};
use engine::suite::{health, run};
use engine::{Durability, Engine, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec};
use engine_microvm::{MachineType, MicrovmConfig, MicrovmEngine};

/// Writes a file in memory and one on the disk.
const WRITE: &str = "echo memory > /dev/shm/file; echo disk > /root/file";
const READ: &str = "cat /dev/shm/file /root/file";

async fn clone_of(engine: &Arc<dyn Engine>) -> Arc<dyn Sandbox> {
    bench().start(engine).await.kill().await.expect("the first one makes the boot snapshot");
    bench().start(engine).await
}

/// Captures and restores a sandbox twice, the second time the restored one; returns the last one.
async fn through_captures(engine: &Arc<dyn Engine>, mut sandbox: Arc<dyn Sandbox>) -> Arc<dyn Sandbox> {
    run(&*sandbox, WRITE).await;
    for _ in 0..2 {
        let snapshot_id = SnapshotId::generate();
        let captured = sandbox.capture(snapshot_id, true, Durability::Durable).await.expect("is captured");
        assert!(captured.memory && captured.memory_bytes > 0);
        assert_eq!(run(&*sandbox, READ).await.stdout, "memory\ndisk\n", "after the capture");
        sandbox.kill().await.expect("ends");
        let spec = StartSpec { id: SandboxId::generate(), ..bench().spec() };
        sandbox = engine.restore(snapshot_id, RestoreMode::Memory, spec).await.expect("is restored");
        health(&*sandbox).await;
        assert_eq!(run(&*sandbox, READ).await.stdout, "memory\ndisk\n", "after the restore");
        engine.discard(snapshot_id).await.expect("goes");
    }
    sandbox
}

async fn open(data: &Path, change: impl FnOnce(&mut MicrovmConfig)) -> Arc<dyn Engine> {
    let mut config = config(data.to_owned());
    change(&mut config);
    let engine = MicrovmEngine::open(&config).expect("this host can emulate it");
    engine.sweep(&[], &[]).await.expect("a fresh directory sweeps");
    Arc::new(engine)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q35_boots_and_restores() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = open(data.path(), |config| config.machine_type = MachineType::Q35).await;
    let sandbox = clone_of(&engine).await;
    let devices = run(&*sandbox, "ls /sys/bus/pci/devices | wc -l").await.stdout;
    assert!(devices.trim().parse::<u32>().expect("a number") > 4, "devices on its bus: {devices}");
    through_captures(&engine, sandbox).await.kill().await.expect("ends");
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_streams_are_restored() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = open(data.path(), |config| config.stream_memory = true).await;
    let sandbox = clone_of(&engine).await;
    through_captures(&engine, sandbox).await.kill().await.expect("ends");
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}
