//! The microVM engine against the behaviour suite of all engines, in emulation: it works on every machine.
//! Needs root, `COFFERDAM_ENVD`, `COFFERDAM_GUEST_INIT`, `COFFERDAM_MICROVM` and `COFFERDAM_LAYERS`: `cargo xtask unit`.
//! Every test has its own data folder and leaves no group, mount or process.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use engine::suite::Bench;
use engine_microvm::{Accelerator, MicrovmConfig, MicrovmEngine, Tools};
use layers::VolumesConfig;
use net::GatewayConfig;

type Opening = std::future::Ready<Arc<dyn Engine>>;

fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set; use cargo xtask unit"))
}

fn config(data_dir: PathBuf) -> MicrovmConfig {
    MicrovmConfig {
        data_dir,
        run_dir: "/run/cofferdam".into(),
        tools: Tools::find(&variable("COFFERDAM_MICROVM")).expect("QEMU is set up: cargo xtask unit"),
        accelerator: Accelerator::tcg(),
        agent: variable("COFFERDAM_ENVD"),
        init: variable("COFFERDAM_GUEST_INIT"),
        volumes: VolumesConfig::default(),
        gateway: GatewayConfig::default(),
        boot_timeout: Duration::from_secs(90),
    }
}

fn open(data_dir: PathBuf) -> Opening {
    let engine = MicrovmEngine::open(&config(data_dir)).expect("this host can emulate machines");
    std::future::ready(Arc::new(engine))
}

fn bench() -> Bench<fn(PathBuf) -> Opening> {
    let store = layers::LayerStore::open(&variable("COFFERDAM_LAYERS")).expect("a layer store");
    let recipe = template::Recipe::base().expect("the base recipe");
    let layer = store.by_recipe(recipe.fingerprint()).expect("the base layer is built: cargo xtask unit");
    Bench { open, layers: vec![store.path(&layer)] }
}

fn assert_nothing_left(data: &Path) {
    let instance = engine_host::instance_name(&data.join("microvm")).expect("the folder is there");
    engine::suite::assert_nothing_left(&instance);
}

engine::behaviours!(bench, assert_nothing_left);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_boots_a_guest_and_leaves_nothing() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().join("probe");
    engine_microvm::probe(&config(PathBuf::new()), &folder).await.expect("a guest boots");
    assert!(!folder.exists());
}
