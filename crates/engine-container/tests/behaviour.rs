//! The behaviour suite of all engines, run on the container engine.
//! Needs root, `COFFERDAM_ENVD` (a static envd) and `COFFERDAM_LAYERS` (a store with the base template): `cargo xtask unit`.
//! Every test has its own data directory and leaves no control group, mount or process.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::suite::Bench;
use engine::{Durability, Engine, Resources, RestoreMode, SnapshotId, StartSpec};
use engine_container::{ContainerConfig, ContainerEngine, Criu};
use layers::TreesConfig;
use net::GatewayConfig;

type Opening = std::future::Ready<Arc<dyn Engine>>;

fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set; use cargo xtask unit"))
}

fn criu() -> Option<Criu> {
    Some(Criu::find(&variable("COFFERDAM_CRIU")).expect("CRIU is set up: cargo xtask unit"))
}

fn open(data_dir: PathBuf) -> Opening {
    let config = ContainerConfig {
        data_dir,
        run_dir: "/run/cofferdam".into(),
        resource_server: None,
        envd: variable("COFFERDAM_ENVD"),
        criu: criu(),
        trees: TreesConfig::default(),
        slots: 2,
        gateway: GatewayConfig::default(),
    };
    std::future::ready(Arc::new(ContainerEngine::open(&config).expect("this host can run containers")))
}

fn bench() -> Bench<fn(PathBuf) -> Opening> {
    let store = layers::LayerStore::open(&variable("COFFERDAM_LAYERS")).expect("a layer store");
    let recipe = template::Recipe::base().expect("the base recipe");
    let layer = store.by_recipe(recipe.fingerprint()).expect("the base layer is built: cargo xtask unit");
    Bench { open, layers: vec![store.path(&layer)] }
}

fn assert_nothing_left(data: &Path) {
    engine::suite::assert_nothing_left(&engine_host::instance_name(data).expect("the directory is there"));
}

engine::behaviours!(bench, assert_nothing_left);

/// On disk a sandbox's root is the host's root: its set-user-id programs must be out of other users' reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_of_the_host_cannot_reach_a_sandboxes_files() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let sandbox = bench().start(&engine).await;
    engine::suite::run(&*sandbox, "cp /bin/bash /root/shell && chmod 4755 /root/shell").await;
    let shell = sandbox.private_dir().join("upper/root/shell");
    assert!(shell.exists());
    let as_other_user = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&shell)
        .args(["-p", "-c", "id -u"])
        .output()
        .expect("setpriv runs");
    assert!(!as_other_user.status.success(), "{}", String::from_utf8_lossy(&as_other_user.stdout));
    sandbox.kill().await.expect("ends");
    engine.shutdown().await;
}

/// Processes that are restored with other limits see these, also through files that they hold open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_sandbox_sees_its_new_limits() {
    const SIZE: &str =
        "nproc; cat /sys/fs/cgroup/memory.max; grep -o 'MemTotal: *[0-9]*' /proc/meminfo | tr -d ' '";
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let sandbox = bench().start(&engine).await;
    let hold = "(exec 7</proc/meminfo; until test -e /tmp/go; do sleep 0.05; done; head -1 <&7 > /tmp/held) >/dev/null 2>&1 &";
    engine::suite::run(&*sandbox, hold).await;
    let before = engine::suite::run(&*sandbox, SIZE).await.stdout;
    assert_eq!(before, format!("1\n{}\nMemTotal:{}\n", 256 << 20, 256 << 10));
    let snapshot = SnapshotId::generate();
    sandbox.capture(snapshot, true, Durability::Ephemeral).await.expect("the capture succeeds");
    let spec = bench().spec();
    let resources = Resources { cpu_count: 2, memory_mib: 512, ..spec.resources };
    let larger = engine
        .restore(snapshot, RestoreMode::Memory, StartSpec { resources, ..spec })
        .await
        .expect("restores");
    let after = engine::suite::run(&*larger, SIZE).await.stdout;
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get().min(2));
    assert_eq!(after, format!("{processors}\n{}\nMemTotal:{}\n", 512 << 20, 512 << 10));
    let held = "touch /tmp/go; until test -s /tmp/held; do sleep 0.05; done; tr -d ' ' < /tmp/held";
    assert_eq!(engine::suite::run(&*larger, held).await.stdout, format!("MemTotal:{}kB\n", 512 << 10));
    for sandbox in [sandbox, larger] {
        sandbox.kill().await.expect("ends");
    }
    engine.discard(snapshot).await.expect("the snapshot is removed");
    engine.shutdown().await;
}
