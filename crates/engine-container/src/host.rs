//! [`Host`]: what all containers of this server share on the host: the engine's directories and records, the system call filter,
//! CRIU, and the layer with envd. Opened once, when the server starts.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::EngineError;
use engine_host::{
    HostLease, HostResources, MemoryKills, RunningSandboxes, check_host, fingerprint, instance_name,
    make_dir, make_private_dir,
};
use libc::sock_filter;
use net::GatewayConfig;
use resource_files::ResourceFiles;
use sys::EchoSocketLimit;
use tracing::warn;

use crate::criu::{Checkpointer, Criu};
use crate::echo::open_echo_limit;
use crate::processors::Processors;
use crate::sandbox::ContainerSandbox;
use crate::{ContainerConfig, seccomp};

/// Ids and a control group, held for one slot or sandbox.
pub(crate) type Lease = HostLease<Host>;

/// Shared state of the engine.
#[derive(Debug)]
pub(crate) struct Host {
    /// The layer on top of every template. It contains envd and nothing else.
    pub(crate) envd_layer: PathBuf,
    /// Captures and restores memory; `None` without CRIU.
    checkpointer: Option<Checkpointer>,
    /// Where connections to the outside go.
    pub(crate) gateway: GatewayConfig,
    /// Files in which a sandbox sees its own size; `None` where the kernel has no FUSE.
    pub(crate) resource_files: Option<ResourceFiles>,
    /// Limits sandboxes' echo sockets; `None` where the kernel cannot, and then `ping` does not work.
    pub(crate) echo_limit: Option<EchoSocketLimit>,
    /// Which processors sandboxes run on.
    pub(crate) processors: Arc<Processors>,
    /// Processes that were killed for want of memory.
    pub(crate) memory_kills: MemoryKills,
    /// The system call filter of every sandbox.
    pub(crate) filter: Vec<sock_filter>,
    /// The sandboxes that this server watches over.
    pub(crate) running: RunningSandboxes<ContainerSandbox>,
    /// Dropped last, because the other fields use it.
    resources: HostResources,
}

impl Host {
    /// Opens everything.
    ///
    /// # Errors
    /// [`EngineError::Host`] with the remedy where this host cannot run containers.
    pub(crate) fn open(config: &ContainerConfig) -> Result<Self, EngineError> {
        check_host("container", "create namespaces for other user ids")?;
        let data_dir = make_dir(&config.data_dir)?;
        let instance = instance_name(&data_dir).map_err(EngineError::kernel("name this server"))?;
        let resources = HostResources::open(&data_dir, &config.run_dir, config.trees)?;
        let checkpointer = open_checkpointer(config.criu.as_ref(), &resources)?;
        Ok(Self {
            envd_layer: install_envd(&config.envd, &make_private_dir(&data_dir.join("agent"))?)?,
            gateway: config.gateway.clone(),
            resource_files: open_resource_files(config, &resources),
            echo_limit: open_echo_limit(),
            processors: Processors::of_this_server(),
            memory_kills: MemoryKills::open(&instance),
            filter: seccomp::program(checkpointer.is_none()),
            checkpointer,
            running: RunningSandboxes::default(),
            resources,
        })
    }

    /// Returns what captures and restores memory.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] without CRIU.
    pub(crate) fn checkpointer(&self) -> Result<&Checkpointer, EngineError> {
        self.checkpointer.as_ref().ok_or(EngineError::Unsupported(
            "memory snapshots on this host: CRIU 4.2 or newer is missing (cofferdam setup criu brings it)",
        ))
    }

    /// Returns the path of the envd layer with this name; a restored sandbox needs the layer that it was captured with.
    pub(crate) fn envd_layer_named(&self, name: &str) -> PathBuf {
        self.envd_layer.with_file_name(name)
    }
}

impl Deref for Host {
    type Target = HostResources;

    fn deref(&self) -> &HostResources {
        &self.resources
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.close();
        }
    }
}

fn open_resource_files(config: &ContainerConfig, resources: &HostResources) -> Option<ResourceFiles> {
    ResourceFiles::open(&resources.hierarchies, config.resource_server.as_deref())
        .inspect_err(|error| {
            warn!(%error, "sandboxes see the host's memory and processors instead of their own: FUSE cannot be used (modprobe fuse)");
        })
        .ok()
}

fn open_checkpointer(
    criu: Option<&Criu>,
    resources: &HostResources,
) -> Result<Option<Checkpointer>, EngineError> {
    let open = |criu: &Criu| {
        Checkpointer::open(criu.clone(), &resources.run_dir.0, resources.hierarchies.server_group()?)
    };
    criu.map(open).transpose().map_err(EngineError::kernel("set up CRIU"))
}

/// Copies envd into a layer of its own, named by its content, so that a new envd never changes a layer in use. Returns the layer.
fn install_envd(binary: &Path, layers: &Path) -> Result<PathBuf, EngineError> {
    let content = fs::read(binary).map_err(|error| EngineError::Host {
        what: format!("cannot read envd at {}: {error}", binary.display()),
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
