//! Checks whether guests run on this host by booting one: that `/dev/kvm` can be opened proves
//! nothing.
//!
//! The probe uses a data directory of its own, so it disturbs no server and leaves nothing. Its
//! template is an empty directory: guest-init and envd come with the initramfs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{EgressPolicy, Engine, EngineError, Resources, SandboxId, StartSpec, TemplateImage};

use crate::{MicrovmConfig, MicrovmEngine};

/// Boots a guest, kills it, and returns how long the boot took. Creates the directory `dir` for
/// disks and sockets and removes it at the end.
///
/// # Errors
/// QEMU cannot be started, or the guest does not become ready; the text has the reason.
pub async fn probe(config: &MicrovmConfig, dir: &Path) -> Result<Duration, EngineError> {
    let outcome = boot(config, dir).await;
    let run_dir = engine_host::instance_name(&dir.join("microvm")).map(|name| config.run_dir.join(name));
    let _ = fs::remove_dir_all(dir);
    if let Ok(run_dir) = run_dir {
        let _ = fs::remove_dir_all(run_dir);
    }
    outcome
}

async fn boot(config: &MicrovmConfig, dir: &Path) -> Result<Duration, EngineError> {
    let layer = dir.join("layer");
    fs::create_dir_all(&layer).map_err(EngineError::kernel("create the directory of the probe"))?;
    let trees = layers::TreesConfig::default();
    let config = MicrovmConfig { data_dir: dir.to_owned(), trees, ..config.clone() };
    let engine = MicrovmEngine::open(&config)?;
    engine.sweep(&[], &[]).await?;
    let started = Instant::now();
    let spec = StartSpec {
        id: SandboxId::generate(),
        template: TemplateImage { layers: vec![layer], engine: None },
        resources: Resources { cpu_count: 1, memory_mib: 256, disk_mib: 64, pids: 64 },
        hostname: "probe".into(),
        egress: EgressPolicy::deny_all(),
        volumes: Vec::new(),
        recurring: false,
    };
    let sandbox = engine.start(spec).await?;
    let took = started.elapsed();
    sandbox.kill().await?;
    engine.shutdown().await;
    Ok(took)
}
