//! What all VMs of this server share on the host: directories, QEMU, the guest kernel and
//! initramfs, user ids and control groups.
//!
//! Opened once; fails with a remedy if the host cannot run VMs. Everything is below `microvm` in
//! the data directory, so this engine and the container engine share no files.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::EngineError;
use engine_host::{HostResources, RunningSandboxes, check_host, fingerprint, make_dir, make_private_dir};
use guest::Tools;
use net::GatewayConfig;

use crate::MicrovmConfig;
use crate::accelerator::Accelerator;
use crate::base_images::BaseImages;
use crate::boot_snapshots::BootSnapshots;
use crate::sandbox::MicrovmSandbox;
use crate::snapshot::journal_replayer::JournalReplayer;
use crate::vm::VmSockets;
use crate::vm::command_line::{
    BASE_DIR, BOOT_DIR, INITRAMFS_FILE, KERNEL_FILE, MEMORY_DIR, MachineType, SNAPSHOT_DIR, VM_DIR,
};

/// The shared resources of the engine.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) tools: Tools,
    pub(crate) accelerator: Accelerator,
    pub(crate) machine_type: MachineType,
    /// Declared before `resources` with the trees, so that its thread ends before those are closed.
    pub(crate) journal_replayer: JournalReplayer,
    /// Base images of templates.
    pub(crate) base_images: BaseImages,
    /// Sparse files that the memories of booting guests start from, by size.
    pub(crate) zero_memory_dir: PathBuf,
    /// Directory of the guest kernel and initramfs, named by a hash of their content.
    pub(crate) boot: PathBuf,
    pub(crate) boot_snapshots: BootSnapshots,
    pub(crate) gateway: GatewayConfig,
    pub(crate) boot_timeout: Duration,
    pub(crate) stream_memory: bool,
    pub(crate) running: RunningSandboxes<MicrovmSandbox>,
    /// What every engine has on the host. Dropped last, because the other fields use it.
    resources: HostResources,
}

impl Host {
    /// Opens or creates everything.
    ///
    /// # Errors
    /// [`EngineError::Host`], with the remedy, if the host cannot run this engine.
    pub(crate) fn open(config: &MicrovmConfig) -> Result<Self, EngineError> {
        check_host("microvm", "create network namespaces and to confine QEMU")?;
        let data_dir = make_private_dir(&config.data_dir.join("microvm"))?;
        let resources = HostResources::open(&data_dir, &config.run_dir, config.trees)?;
        make_mount_points(&config.tools.root())?;
        let boot = install_boot(config, &make_dir(&data_dir.join("boot"))?)?;
        Ok(Self {
            tools: config.tools.clone(),
            accelerator: config.accelerator.clone(),
            machine_type: config.machine_type,
            journal_replayer: JournalReplayer::start(config.compress_after)
                .map_err(EngineError::kernel("start a thread"))?,
            base_images: BaseImages::open(make_dir(&data_dir.join("bases"))?),
            zero_memory_dir: make_dir(&data_dir.join("holes"))?,
            boot_snapshots: BootSnapshots::open(make_dir(&data_dir.join("templates"))?),
            boot,
            gateway: config.gateway.clone(),
            boot_timeout: config.boot_timeout,
            stream_memory: config.stream_memory,
            running: RunningSandboxes::default(),
            resources,
        })
    }

    /// Returns the sockets of the sandbox with this id.
    pub(crate) fn sockets(&self, name: &str) -> VmSockets {
        VmSockets::of(self.run_dir.0.join(name))
    }

    /// Identifies what memory snapshots depend on besides their template: QEMU's version, machine
    /// type, accelerator, processor.
    pub(crate) fn compatibility(&self) -> String {
        let (qemu, machine) = (self.tools.qemu_version(), self.machine_type.name());
        fingerprint(format!("{qemu} {machine} {}", self.accelerator.fingerprint()).as_bytes())
    }
}

impl Deref for Host {
    type Target = HostResources;

    fn deref(&self) -> &HostResources {
        &self.resources
    }
}

/// Creates the mount points in QEMU's root directory that it does not have yet.
fn make_mount_points(root: &Path) -> Result<(), EngineError> {
    let make = || -> std::io::Result<()> {
        for name in [BASE_DIR, VM_DIR, MEMORY_DIR, SNAPSHOT_DIR, BOOT_DIR] {
            fs::create_dir_all(root.join(name))?;
        }
        Ok(())
    };
    make().map_err(EngineError::kernel("create QEMU's mount points"))
}

/// Installs the guest kernel and initramfs in a directory that is named by a hash of both and
/// returns it. Guests that were started from other versions keep theirs.
fn install_boot(config: &MicrovmConfig, dir: &Path) -> Result<PathBuf, EngineError> {
    let read = |path: &Path, remedy: &str| {
        fs::read(path).map_err(|error| EngineError::Host {
            what: format!("{} cannot be read: {error}", path.display()),
            remedy: remedy.to_owned(),
        })
    };
    let remedy = "build it (cargo xtask build) or put it beside the server's binary";
    let parts = [
        read(&config.envd, remedy)?,
        read(&config.guest_init, remedy)?,
        config.tools.kernel_version().as_bytes().to_vec(),
    ];
    let fingerprints: Vec<String> = parts.iter().map(|part| fingerprint(part)).collect();
    let boot = dir.join(fingerprint(fingerprints.concat().as_bytes()));
    if boot.is_dir() {
        return Ok(boot);
    }
    let new = dir.join("new");
    let _ = fs::remove_dir_all(&new);
    let install = || -> Result<(), String> {
        fs::create_dir(&new).map_err(|error| error.to_string())?;
        fs::copy(config.tools.kernel(), new.join(KERNEL_FILE)).map_err(|error| error.to_string())?;
        guest::initramfs::write(&config.tools, &config.guest_init, &config.envd, &new.join(INITRAMFS_FILE))
            .map_err(|error| error.to_string())?;
        for file in [KERNEL_FILE, INITRAMFS_FILE] {
            fs::set_permissions(new.join(file), fs::Permissions::from_mode(0o444))
                .map_err(|error| error.to_string())?;
        }
        fs::rename(&new, &boot).map_err(|error| error.to_string())
    };
    install().map_err(|error| EngineError::Host {
        what: format!("the initramfs of guests cannot be written: {error}"),
        remedy: "see `cofferdam doctor`; `cofferdam setup microvm` installs the parts".into(),
    })?;
    Ok(boot)
}
