//! Common parts of this engine's tests: the engine in emulation with a data directory, and the base
//! template.
//!
//! Needs root, `COFFERDAM_ENVD`, `COFFERDAM_GUEST_INIT`, `COFFERDAM_MICROVM` and
//! `COFFERDAM_LAYERS`: `cargo xtask unit` sets them.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use engine::suite::Bench;
use engine_microvm::{Accelerator, MachineType, MicrovmConfig, MicrovmEngine, Tools};
use layers::TreesConfig;
use net::GatewayConfig;

pub type Opening = std::future::Ready<Arc<dyn Engine>>;

fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set; use cargo xtask unit"))
}

pub fn config(data_dir: PathBuf) -> MicrovmConfig {
    MicrovmConfig {
        data_dir,
        run_dir: "/run/cofferdam".into(),
        tools: Tools::find(&variable("COFFERDAM_MICROVM")).expect("QEMU is set up: cargo xtask unit"),
        accelerator: Accelerator::tcg(),
        machine_type: MachineType::Microvm,
        envd: variable("COFFERDAM_ENVD"),
        guest_init: variable("COFFERDAM_GUEST_INIT"),
        trees: TreesConfig::default(),
        gateway: GatewayConfig::default(),
        boot_timeout: Duration::from_secs(90),
        stream_memory: false,
        compress_after: Duration::from_millis(100),
    }
}

pub fn open(data_dir: PathBuf) -> Opening {
    let engine = MicrovmEngine::open(&config(data_dir)).expect("this host can emulate VMs");
    std::future::ready(Arc::new(engine))
}

pub fn bench() -> Bench<fn(PathBuf) -> Opening> {
    let store = layers::LayerStore::open(&variable("COFFERDAM_LAYERS")).expect("a layer store");
    let recipe = template::Recipe::base().expect("the base recipe");
    let layer = store.by_recipe(recipe.fingerprint()).expect("the base layer is built: cargo xtask unit");
    Bench { open, layers: vec![store.path(&layer)] }
}

/// Asserts that no mount and no control group of the engine on this data directory is left.
pub fn assert_nothing_left(data: &Path) {
    let instance = engine_host::instance_name(&data.join("microvm")).expect("the directory is there");
    engine::suite::assert_nothing_left(&instance);
}
