//! The functional check: starts a sandbox with the container engine, sends a request to its envd, and captures and restores it.
//! It uses a data directory of its own, so it disturbs no server and leaves nothing behind.
//! Needs root and the template `base`; the finding says so if one is missing.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    Durability, EgressPolicy, Engine, EngineError, Resources, RestoreMode, Sandbox, SandboxId, SnapshotId,
    StartSpec, TemplateImage,
};
use engine_container::{ContainerConfig, ContainerEngine, Criu};
use engine_host::instance_name;
use layers::TreesConfig;
use net::GatewayConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{DoctorArguments, Finding, checks};
use crate::failure::Failure;
use crate::paths;

const CHECK: &str = "probe";
/// Maximum time for envd to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn run(arguments: &DoctorArguments) -> Finding {
    if !rustix::process::geteuid().is_root() {
        return Finding::warning(CHECK, "not run: needs root", "run doctor as root");
    }
    let Some(layer) = checks::base_layer(arguments) else {
        let remedy = "build the template (cofferdam template build-base) and run doctor again";
        return Finding::warning(CHECK, "not run: there is no template to start from", remedy);
    };
    let begun = Instant::now();
    match in_own_dir(arguments, layer).await {
        Ok(summary) => Finding::ok(
            CHECK,
            format!(
                "a sandbox started, answered and ended within {} ms; {summary}",
                begun.elapsed().as_millis()
            ),
        ),
        Err(failure) => Finding::failure(
            CHECK,
            format!("a sandbox could not be started: {failure}"),
            "see the failures and warnings above; the newest Debian kernel is known to work",
        ),
    }
}

async fn in_own_dir(arguments: &DoctorArguments, layer: PathBuf) -> Result<String, Failure> {
    let envd = paths::envd(arguments.envd.as_deref())?;
    let data_dir = std::env::temp_dir().join(format!("cofferdam-doctor-{}", std::process::id()));
    fs::create_dir(&data_dir)?;
    let run_dir = arguments.run_dir.join(instance_name(&data_dir)?);
    let config = ContainerConfig {
        data_dir: data_dir.clone(),
        run_dir: arguments.run_dir.clone(),
        resource_server: None,
        envd,
        criu: Criu::find(&arguments.criu.path(&arguments.data)).ok(),
        trees: TreesConfig::default(),
        slots: 0,
        gateway: GatewayConfig::default(),
    };
    let outcome = start(&config, layer).await;
    for dir in [&data_dir, &run_dir] {
        remove(dir);
    }
    outcome
}

fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("failed to remove {}: {error}", dir.display());
        }
        _ => {}
    }
}

async fn start(config: &ContainerConfig, layer: PathBuf) -> Result<String, Failure> {
    let engine = ContainerEngine::open(config)?;
    engine.sweep(&[], &[]).await?;
    let template = TemplateImage { layers: vec![layer], engine: None };
    engine.prepare(&template, false).await?;
    let spec = StartSpec {
        id: SandboxId::generate(),
        template,
        resources: Resources::default(),
        hostname: "doctor".into(),
        egress: EgressPolicy::default(),
        volumes: Vec::new(),
        recurring: false,
    };
    let sandbox = engine.start(spec.clone()).await?;
    let answered = answers(&sandbox).await;
    let outcome = match answered {
        Ok(()) if engine.descriptor().capabilities.memory_snapshots => {
            capture_and_restore(&engine, &sandbox, spec).await
        }
        Ok(()) => Ok("no memory snapshot without CRIU"),
        Err(failure) => Err(failure),
    };
    sandbox.kill().await?;
    engine.shutdown().await;
    let memory = outcome?;
    Ok(format!("{memory}; engine {}: {}", engine.descriptor().name, engine.descriptor().summary))
}

/// Takes a memory snapshot of the sandbox and restores it as another one.
async fn capture_and_restore(
    engine: &ContainerEngine,
    sandbox: &Arc<dyn Sandbox>,
    spec: StartSpec,
) -> Result<&'static str, Failure> {
    let blame = |error: EngineError| {
        Failure::new(format!(
            "it started and answered, but a memory snapshot could not be taken and restored: {error}"
        ))
    };
    let snapshot = SnapshotId::generate();
    sandbox.capture(snapshot, true, Durability::Durable).await.map_err(blame)?;
    let spec = StartSpec { id: SandboxId::generate(), ..spec };
    let copy = engine.restore(snapshot, RestoreMode::Memory, spec).await.map_err(blame)?;
    let answered = answers(&copy).await;
    copy.kill().await?;
    engine.discard(snapshot).await?;
    answered.map(|()| "a memory snapshot was taken and restored")
}

async fn answers(sandbox: &Arc<dyn Sandbox>) -> Result<(), Failure> {
    match tokio::time::timeout(ANSWER_TIMEOUT, health(sandbox)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(format!("envd did not answer in {} s", ANSWER_TIMEOUT.as_secs()))),
    }
}

async fn health(sandbox: &Arc<dyn Sandbox>) -> Result<(), Failure> {
    let mut stream = sandbox.dial(envd_api::PORT).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status == "204" {
        return Ok(());
    }
    Err(Failure::new(format!("envd answered {:?}", answer.lines().next().unwrap_or_default())))
}
