//! What all sandboxes of this server share on the host: directories, id ranges, control groups, the filter and envd.
//! Opened once; refuses with a remedy where the host cannot run sandboxes.
//! Names contain the data directory's fingerprint, so two servers never touch each other's objects.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::EngineError;
use engine_host::{
    Hierarchies, Records, RunDir, Running, UidRanges, check_kernel, check_root, fingerprint, instance_name,
    make_dir, make_private_dir, raise_open_files,
};
use layers::Trees;
use libc::sock_filter;
use net::GatewayConfig;

use crate::criu::{Criu, Memory};
use crate::sandbox::ContainerSandbox;
use crate::{ContainerConfig, seccomp};

/// First kernel with all that the engine uses: overlay layers given as file descriptors.
const MINIMUM_KERNEL: (u32, u32) = (6, 15);

/// Shared state of the engine.
#[derive(Debug)]
pub(crate) struct Host {
    /// Records of running sandboxes.
    pub(crate) records: Records,
    /// What sandboxes write, and captured states of it.
    pub(crate) trees: Trees,
    /// An empty directory that PID 1 attaches its root to, in its own mount namespace.
    pub(crate) root_target: PathBuf,
    /// The layer on top of every template: envd and nothing else.
    pub(crate) agent_layer: PathBuf,
    /// Captured states.
    pub(crate) snapshots: PathBuf,
    memory: Option<Memory>,
    pub(crate) gateway: GatewayConfig,
    pub(crate) uids: UidRanges,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) filter: Vec<sock_filter>,
    pub(crate) running: Running<ContainerSandbox>,
    /// Last, because the others have things in it.
    _run_dir: RunDir,
}

impl Host {
    /// Opens everything.
    pub(crate) fn open(config: &ContainerConfig) -> Result<Self, EngineError> {
        check_kernel("the container engine", MINIMUM_KERNEL)?;
        check_root("the container engine makes namespaces for other user ids")?;
        raise_open_files().map_err(EngineError::kernel("raise the limit of open files"))?;
        let data_dir = make_dir(&config.data_dir)?;
        let instance = instance_name(&data_dir).map_err(EngineError::kernel("name this server"))?;
        let run_dir = make_dir(&config.run_dir.join(&instance))?;
        let host = Self {
            records: Records::new(make_private_dir(&data_dir.join("sandboxes"))?),
            trees: Trees::open(&data_dir, config.trees).map_err(|error| EngineError::Host {
                what: format!("sandboxes' files cannot be opened: {error}"),
                remedy: "see `cofferdam doctor`; --storage chooses another way to keep them".into(),
            })?,
            root_target: make_dir(&run_dir.join("root"))?,
            snapshots: make_private_dir(&data_dir.join("snapshots"))?,
            memory: open_memory(config.criu.as_ref(), &run_dir)?,
            agent_layer: install_agent(&config.agent, &make_private_dir(&data_dir.join("agent"))?)?,
            gateway: config.gateway.clone(),
            uids: UidRanges::open(&config.run_dir.join("uids"), &data_dir)
                .map_err(EngineError::kernel("take uids"))?,
            hierarchies: Hierarchies::open(&instance, &run_dir)
                .map_err(EngineError::kernel("open control groups"))?,
            filter: seccomp::program(),
            running: Running::default(),
            _run_dir: RunDir(run_dir.clone()),
        };
        Ok(host)
    }
}

impl Host {
    /// What captures and restores memory.
    pub(crate) fn memory(&self) -> Result<&Memory, EngineError> {
        self.memory.as_ref().ok_or(EngineError::Unsupported(
            "memory snapshots on this host: CRIU 4.2 or newer is missing (cofferdam setup criu brings it)",
        ))
    }

    /// The agent's layer of this name.
    pub(crate) fn agent_layer_named(&self, name: &str) -> PathBuf {
        self.agent_layer.with_file_name(name)
    }
}

fn open_memory(criu: Option<&Criu>, run_dir: &Path) -> Result<Option<Memory>, EngineError> {
    let open = |criu: &Criu| Memory::open(criu.clone(), run_dir);
    criu.map(open).transpose().map_err(EngineError::kernel("set up CRIU"))
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            memory.close();
        }
        self.hierarchies.remove_if_empty();
        let _ = fs::remove_dir(&self.root_target);
    }
}

/// Copies envd into a layer of its own, named by its content: a new envd never changes a layer in use.
fn install_agent(binary: &Path, layers: &Path) -> Result<PathBuf, EngineError> {
    let content = fs::read(binary).map_err(|error| EngineError::Host {
        what: format!("envd cannot be read at {}: {error}", binary.display()),
        remedy: "build it (cargo xtask build) or name it with --envd".into(),
    })?;
    let layer = layers.join(fingerprint(&content));
    if layer.is_dir() {
        return Ok(layer);
    }
    let write = || -> io::Result<()> {
        let new = layers.join("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(new.join("usr/bin"))?;
        let file = new.join("usr/bin/envd");
        fs::write(&file, &content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &layer)
    };
    write().map_err(EngineError::kernel("install envd's layer"))?;
    Ok(layer)
}
