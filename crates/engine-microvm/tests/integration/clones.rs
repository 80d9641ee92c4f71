//! Clones of one warm start: equal in everything that a template is, different in everything that makes one a sandbox of its own.
//! They are asked for at once, so that none profits from another's noise.
//! A warm start that is no good costs time and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{assert_nothing_left, bench};
use engine::suite::{health, run};
use engine::{Durability, EngineError, RestoreMode, SandboxId, SnapshotId, StartSpec};

/// The first random bytes anybody gets there, by three ways, and what tells sandboxes apart.
const WHO: &str = "python3 -c 'import os; print(os.getrandom(32).hex(), open(\"/dev/urandom\", \"rb\").read(32).hex())'; \
    cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; hostname; date +%s";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_are_sandboxes_of_their_own() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    bench().start(&engine).await.kill().await.expect("the first one makes the warm start");
    let starts = (0..4).map(|number| {
        let (engine, spec) = (engine.clone(), bench().spec());
        tokio::spawn(async move {
            let sandbox =
                engine.start(StartSpec { hostname: format!("clone{number}"), ..spec }).await.expect("starts");
            health(&*sandbox).await;
            let before = now();
            let said = run(&*sandbox, WHO).await.stdout;
            (sandbox, said, before..=now())
        })
    });
    let starts: Vec<_> = starts.collect();
    let mut seen = BTreeSet::new();
    for (number, start) in starts.into_iter().enumerate() {
        let (sandbox, said, during) = start.await.expect("no panic");
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words.len(), 6, "{said}");
        for secret in &words[..4] {
            assert!(seen.insert((*secret).to_owned()), "{secret} was seen before");
        }
        assert_eq!(words[4], format!("clone{number}"));
        let theirs: u64 = words[5].parse().expect("seconds");
        let (earliest, latest) = (during.start() - 2, during.end() + 2);
        assert!((earliest..=latest).contains(&theirs), "its clock says {theirs}, ours {during:?}");
        sandbox.kill().await.expect("ends");
    }
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_warm_start_is_replaced() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let first = bench().start(&engine).await;
    // Trees may be nowhere in the host's tree; a sandbox's directory is beside its template's.
    let trees = first.private_dir().parent().expect("a directory of trees").to_owned();
    let memory = fs::read_dir(&trees).expect("trees").flatten().map(|entry| entry.path());
    let memory: Vec<_> = memory
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("m-t-")))
        .collect();
    assert_eq!(memory.len(), 1, "one warm start");
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

/// A name that no kernel takes stands for all that can go wrong before user code may run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_confirm_is_ended() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let source = bench().start(&engine).await;
    let state = SnapshotId::generate();
    source.capture(state, true, Durability::Durable).await.expect("is captured");
    source.kill().await.expect("ends");
    let spec = |hostname: &str| StartSpec {
        id: SandboxId::generate(),
        hostname: hostname.to_owned(),
        ..bench().spec()
    };
    let refused = engine.restore(state, RestoreMode::Memory, spec(&"x".repeat(65))).await;
    let refused = refused.err().expect("is refused");
    assert!(matches!(&refused, EngineError::Restore(reason) if reason.contains("host name")), "{refused}");
    let records = fs::read_dir(data.path().join("microvm/sandboxes")).expect("records");
    assert_eq!(records.count(), 0, "its machine is gone");
    let copy =
        engine.restore(state, RestoreMode::Memory, spec("other")).await.expect("the state is still good");
    assert_eq!(run(&*copy, "hostname").await.stdout, "other\n");
    copy.kill().await.expect("ends");
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}
