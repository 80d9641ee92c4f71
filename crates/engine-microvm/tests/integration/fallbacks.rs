//! The second ways: another machine, for hosts where guests do not boot on `microvm`, and memory as a stream, for those where its pages
//! cannot be looked at. Each is started, cloned, captured and brought back.
//! Everything else about them is what the behaviour suite says of the first.

use std::path::Path;
use std::sync::Arc;

use crate::common::{assert_nothing_left, bench, config};
use engine::suite::{health, run};
use engine::{Durability, Engine, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec};
use engine_microvm::{MachineType, MicrovmConfig, MicrovmEngine};

/// Something in memory, something on the disk.
const WRITE: &str = "echo memory > /dev/shm/file; echo disk > /root/file";
const READ: &str = "cat /dev/shm/file /root/file";

async fn clone_of(engine: &Arc<dyn Engine>) -> Arc<dyn Sandbox> {
    bench().start(engine).await.kill().await.expect("the first one makes the warm start");
    bench().start(engine).await
}

/// Captures it twice, the second time what came out of the first, and returns what was brought back last.
async fn through_captures(engine: &Arc<dyn Engine>, mut sandbox: Arc<dyn Sandbox>) -> Arc<dyn Sandbox> {
    run(&*sandbox, WRITE).await;
    for _ in 0..2 {
        let state = SnapshotId::generate();
        let captured = sandbox.capture(state, true, Durability::Durable).await.expect("is captured");
        assert!(captured.memory && captured.memory_bytes > 0);
        assert_eq!(run(&*sandbox, READ).await.stdout, "memory\ndisk\n", "it goes on");
        sandbox.kill().await.expect("ends");
        let spec = StartSpec { id: SandboxId::generate(), ..bench().spec() };
        sandbox = engine.restore(state, RestoreMode::Memory, spec).await.expect("is restored");
        health(&*sandbox).await;
        assert_eq!(run(&*sandbox, READ).await.stdout, "memory\ndisk\n", "it is back");
        engine.discard(state).await.expect("goes");
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
async fn a_pc_is_a_machine_too() {
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
async fn memory_comes_as_a_stream_too() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = open(data.path(), |config| config.stream_memory = true).await;
    let sandbox = clone_of(&engine).await;
    through_captures(&engine, sandbox).await.kill().await.expect("ends");
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}
