//! Clones of one boot snapshot: equal in everything that belongs to a template, different in
//! everything that identifies a sandbox.
//!
//! They are started at the same time, so that none gets randomness from the activity of another.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{assert_nothing_left, bench};
use engine::suite::{health, run};
use engine::{Durability, EngineError, RestoreMode, SandboxId, SnapshotId, StartSpec};

/// Prints the first random bytes that a program gets, by three ways, and what identifies a sandbox.
const IDENTITY: &str = "python3 -c 'import os; print(os.getrandom(32).hex(), open(\"/dev/urandom\", \"rb\").read(32).hex())'; \
    cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; hostname; date +%s";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_differ_in_randomness_boot_id_and_host_name() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    bench().start(&engine).await.kill().await.expect("the first one makes the boot snapshot");
    let starts = (0..4).map(|number| {
        let (engine, spec) = (engine.clone(), bench().spec());
        tokio::spawn(async move {
            let sandbox =
                engine.start(StartSpec { hostname: format!("clone{number}"), ..spec }).await.expect("starts");
            health(&*sandbox).await;
            let before = now();
            let output = run(&*sandbox, IDENTITY).await.stdout;
            (sandbox, output, before..=now())
        })
    });
    let starts: Vec<_> = starts.collect();
    let mut seen = BTreeSet::new();
    for (number, start) in starts.into_iter().enumerate() {
        let (sandbox, output, during) = start.await.expect("no panic");
        let words: Vec<&str> = output.split_whitespace().collect();
        assert_eq!(words.len(), 6, "{output}");
        for secret in &words[..4] {
            assert!(seen.insert((*secret).to_owned()), "{secret} was seen before");
        }
        assert_eq!(words[4], format!("clone{number}"));
        let guest_time: u64 = words[5].parse().expect("seconds");
        let (earliest, latest) = (during.start() - 2, during.end() + 2);
        assert!(
            (earliest..=latest).contains(&guest_time),
            "the guest's clock is {guest_time}, the host's {during:?}"
        );
        sandbox.kill().await.expect("ends");
    }
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_boot_snapshot_is_replaced() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let first = bench().start(&engine).await;
    // Trees may be nowhere in the host's tree; a sandbox's directory is beside its template's.
    let trees = first.private_dir().parent().expect("a directory of trees").to_owned();
    let memory = fs::read_dir(&trees).expect("trees").flatten().map(|entry| entry.path());
    let memory: Vec<_> = memory
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("m-t-")))
        .collect();
    assert_eq!(memory.len(), 1, "one boot snapshot");
    let devices = memory[0].join("devices");
    fs::write(&devices, b"not what QEMU wrote").expect("writes");
    let second = bench().start(&engine).await;
    assert_eq!(run(&*second, "echo alive").await.stdout, "alive\n");
    assert_ne!(fs::read(&devices).expect("made anew"), b"not what QEMU wrote");
    for sandbox in [first, second] {
        sandbox.kill().await.expect("ends");
    }
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}

/// A host name that the kernel refuses stands for any error before user code is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_confirm_its_identity_is_killed() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let source = bench().start(&engine).await;
    let snapshot_id = SnapshotId::generate();
    source.capture(snapshot_id, true, Durability::Durable).await.expect("is captured");
    source.kill().await.expect("ends");
    let spec = |hostname: &str| StartSpec {
        id: SandboxId::generate(),
        hostname: hostname.to_owned(),
        ..bench().spec()
    };
    let refused = engine.restore(snapshot_id, RestoreMode::Memory, spec(&"x".repeat(65))).await;
    let refused = refused.err().expect("is refused");
    assert!(matches!(&refused, EngineError::Restore(reason) if reason.contains("host name")), "{refused}");
    let records = fs::read_dir(data.path().join("microvm/sandboxes")).expect("records");
    assert_eq!(records.count(), 0, "its VM was not killed");
    let copy = engine
        .restore(snapshot_id, RestoreMode::Memory, spec("other"))
        .await
        .expect("the snapshot_id is still good");
    assert_eq!(run(&*copy, "hostname").await.stdout, "other\n");
    copy.kill().await.expect("ends");
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}
