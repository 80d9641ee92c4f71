//! What all sandboxes of this server share on the host: folders, id ranges, control groups, the filter and envd.
//! Opened once; refuses with a remedy where the host cannot run sandboxes.
//! Names contain the data folder's fingerprint, so two servers never touch each other's objects.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::EngineError;
use layers::Volumes;
use libc::sock_filter;
use net::GatewayConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

use crate::cgroup::Hierarchies;
use crate::criu::{Criu, Memory};
use crate::sandbox::Running;
use crate::uids::UidRanges;
use crate::{ContainerConfig, seccomp};

/// First kernel with all that the engine uses: overlay layers given as file descriptors.
const MINIMUM_KERNEL: (u32, u32) = (6, 15);

/// Shared state of the engine.
#[derive(Debug)]
pub(crate) struct Host {
    /// Records of running sandboxes.
    pub(crate) records: PathBuf,
    /// What sandboxes write, and captured states of it.
    pub(crate) volumes: Volumes,
    /// An empty folder that PID 1 attaches its root to, in its own mount namespace.
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
    pub(crate) running: Running,
    /// Last, because the others have things in it.
    _run_dir: RunDir,
}

impl Host {
    /// Opens everything.
    pub(crate) fn open(config: &ContainerConfig) -> Result<Self, EngineError> {
        check_kernel()?;
        check_root()?;
        raise_open_files().map_err(EngineError::kernel("raise the limit of open files"))?;
        let data_dir = make_folder(&config.data_dir)?;
        let instance = instance_name(&data_dir).map_err(EngineError::kernel("name this server"))?;
        let run_dir = make_folder(&config.run_dir.join(&instance))?;
        let host = Self {
            records: make_private_folder(&data_dir.join("sandboxes"))?,
            volumes: Volumes::open(&data_dir, config.volumes).map_err(|error| EngineError::Host {
                what: format!("sandboxes' volumes cannot be opened: {error}"),
                remedy: "see `cofferdam doctor`; --volumes chooses another way to keep them".into(),
            })?,
            root_target: make_folder(&run_dir.join("root"))?,
            snapshots: make_private_folder(&data_dir.join("snapshots"))?,
            memory: open_memory(config.criu.as_ref(), &run_dir)?,
            agent_layer: install_agent(&config.agent, &make_private_folder(&data_dir.join("agent"))?)?,
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

/// This server's folder for mounts; goes with it if nothing is left in there.
#[derive(Debug)]
struct RunDir(PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The name that this data folder's kernel objects carry: the folders of its control groups and mounts.
///
/// # Errors
/// The folder does not exist.
pub fn instance_name(data_dir: &Path) -> io::Result<String> {
    let path = fs::canonicalize(data_dir)?;
    Ok(format!("cofferdam-{}", fingerprint(path.as_os_str().as_encoded_bytes())))
}

fn make_folder(path: &Path) -> Result<PathBuf, EngineError> {
    fs::create_dir_all(path).and_then(|()| fs::canonicalize(path)).map_err(|error| EngineError::Host {
        what: format!("{} cannot be made: {error}", path.display()),
        remedy: "choose another folder with --data-dir or make it writable".into(),
    })
}

/// A folder that only root can enter. On disk a sandbox's root is the host's root, so a set-user-id program that a
/// sandbox makes would be one for every user of the host who could reach the file.
fn make_private_folder(path: &Path) -> Result<PathBuf, EngineError> {
    let folder = make_folder(path)?;
    let closed = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
    closed.map_err(EngineError::kernel("close a folder to other users"))?;
    Ok(folder)
}

fn check_kernel() -> Result<(), EngineError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= MINIMUM_KERNEL {
        return Ok(());
    }
    let (major, minor) = MINIMUM_KERNEL;
    Err(EngineError::Host {
        what: format!("the container engine needs Linux {major}.{minor}; this is {release}"),
        remedy: "boot a newer kernel (Debian: the one from backports)".into(),
    })
}

fn check_root() -> Result<(), EngineError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(EngineError::Host {
        what: "the container engine makes namespaces for other user ids, which needs root".into(),
        remedy: "start the server as root; sandboxes never run as the host's root".into(),
    })
}

/// A sandbox costs the server about ten descriptors.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
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
