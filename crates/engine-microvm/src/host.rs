//! What all VMs of this server share on the host: directories, QEMU, the guest kernel and
//! initramfs, user ids and control groups.
//!
//! Opened once; fails with a remedy if the host cannot run VMs. Everything is below `microvm` in
//! the data directory, so this engine and the container engine share no files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::EngineError;
use engine_host::{
    Hierarchies, Records, RunDir, Running, UidRanges, check_kernel, check_root, fingerprint, instance_name,
    make_dir, make_private_dir, raise_open_files,
};
use guest::Tools;
use layers::Trees;
use net::GatewayConfig;

use crate::MicrovmConfig;
use crate::accelerator::Accelerator;
use crate::base_images::BaseImages;
use crate::sandbox::MicrovmSandbox;
use crate::snapshot::journal_replayer::JournalReplayer;
use crate::vm::VmSockets;
use crate::vm::command_line::{
    BASE_DIR, BOOT_DIR, INITRAMFS_FILE, KERNEL_FILE, MEMORY_DIR, MachineType, SNAPSHOT_DIR, VM_DIR,
};
use crate::warm_starts::WarmStarts;

/// The first kernel that can clone detached mounts.
const MINIMUM_KERNEL: (u32, u32) = (6, 15);

/// The shared resources of the engine.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) tools: Tools,
    pub(crate) accelerator: Accelerator,
    pub(crate) machine_type: MachineType,
    /// Records of running sandboxes.
    pub(crate) records: Records,
    /// Declared before `trees`, so that its thread ends before those are closed.
    pub(crate) journal_replayer: JournalReplayer,
    /// Disks and memory images of sandboxes and snapshots.
    pub(crate) trees: Trees,
    /// Directory of snapshot records and journals.
    pub(crate) snapshots: PathBuf,
    /// Base images of templates.
    pub(crate) base_images: BaseImages,
    /// Sparse files that the memories of booting guests start from, by size.
    pub(crate) zero_memory_dir: PathBuf,
    /// Directory of the guest kernel and initramfs, named by a hash of their content.
    pub(crate) boot: PathBuf,
    pub(crate) warm_starts: WarmStarts,
    pub(crate) gateway: GatewayConfig,
    pub(crate) uids: UidRanges,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) boot_timeout: Duration,
    pub(crate) stream_memory: bool,
    pub(crate) running: Running<MicrovmSandbox>,
    /// An empty directory that QEMU's root is mounted on, in QEMU's own mount namespace.
    pub(crate) root_target: PathBuf,
    run_dir: RunDir,
}

impl Host {
    /// Opens or creates everything.
    ///
    /// # Errors
    /// [`EngineError::Host`], with the remedy, if the host cannot run this engine.
    pub(crate) fn open(config: &MicrovmConfig) -> Result<Self, EngineError> {
        check_kernel("the microvm engine", MINIMUM_KERNEL)?;
        check_root("the microvm engine makes network namespaces and confines QEMU")?;
        raise_open_files().map_err(EngineError::kernel("raise the limit of open files"))?;
        let data_dir = make_private_dir(&config.data_dir.join("microvm"))?;
        let instance = instance_name(&data_dir).map_err(EngineError::kernel("name this server"))?;
        let run_dir = make_dir(&config.run_dir.join(&instance))?;
        make_mount_points(&config.tools.root())?;
        let boot = install_boot(config, &make_dir(&data_dir.join("boot"))?)?;
        Ok(Self {
            tools: config.tools.clone(),
            accelerator: config.accelerator.clone(),
            machine_type: config.machine_type,
            records: Records::new(make_private_dir(&data_dir.join("sandboxes"))?),
            journal_replayer: JournalReplayer::start(config.compress_after)
                .map_err(EngineError::kernel("start a thread"))?,
            trees: Trees::open(&data_dir, config.trees).map_err(|error| EngineError::Host {
                what: format!("the storage of sandboxes cannot be opened: {error}"),
                remedy: "see `cofferdam doctor`; --storage chooses another way to store them".into(),
            })?,
            snapshots: make_private_dir(&data_dir.join("snapshots"))?,
            base_images: BaseImages::open(make_dir(&data_dir.join("bases"))?),
            zero_memory_dir: make_dir(&data_dir.join("holes"))?,
            warm_starts: WarmStarts::open(make_dir(&data_dir.join("templates"))?),
            boot,
            gateway: config.gateway.clone(),
            uids: UidRanges::open(&config.run_dir.join("uids"), &data_dir)
                .map_err(EngineError::kernel("open the ranges of user ids"))?,
            hierarchies: Hierarchies::open(&instance, &run_dir)
                .map_err(EngineError::kernel("open control groups"))?,
            boot_timeout: config.boot_timeout,
            stream_memory: config.stream_memory,
            running: Running::default(),
            root_target: make_dir(&run_dir.join("root"))?,
            run_dir: RunDir(run_dir),
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

impl Drop for Host {
    fn drop(&mut self) {
        self.hierarchies.remove_if_empty();
        let _ = fs::remove_dir(&self.root_target);
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
