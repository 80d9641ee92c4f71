//! Launching one QEMU from its parts: network, disk, sockets, mounts, command line.
//!
//! Booting and restoring differ only in the mounts and the command line. Nothing has connected to
//! QEMU yet when [`LaunchPlan::launch`] returns.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use engine::{EngineError, Resources, StartSpec};
use engine_host::{ProcessId, tree_of};
use guest_api::network;
use layers::TreeName;
use net::{LinkAddresses, Listeners, create_tap_network};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sys::Namespace;

use crate::accelerator::Accelerator;
use crate::claim::Claim;
use crate::disks;
use crate::host::Host;
use crate::record::{SandboxRecord, VmSpec};
use crate::vm::command_line::{
    BASE_DIR, BOOT_DIR, InheritedFds, MEMORY_DIR, SNAPSHOT_DIR, StartMode, VM_DIR, command_line,
};
use crate::vm::{BindMount, QemuLaunch, QemuLog, spawn_qemu};

const LINK_ADDRESSES: LinkAddresses = LinkAddresses {
    guest_mac: network::GUEST_MAC,
    host_mac: network::HOST_MAC,
    guest_ipv4: network::GUEST_V4,
    host_ipv4: network::HOST_V4,
    prefix_ipv4: network::PREFIX_V4,
    guest_ipv6: network::GUEST_V6,
    host_ipv6: network::HOST_V6,
    prefix_ipv6: network::PREFIX_V6,
};

/// Everything needed to launch one QEMU.
pub(crate) struct LaunchPlan {
    pub(crate) spec: StartSpec,
    pub(crate) vm_spec: VmSpec,
    /// Tree with the disk that the sandbox gets a copy of.
    pub(crate) disk: TreeName,
    /// Directory of the file that the guest's memory starts from.
    pub(crate) memory: PathBuf,
    pub(crate) start_mode: StartMode,
    /// Directory of kernel and initramfs, or of the snapshot's devices.
    pub(crate) source: PathBuf,
}

/// A running QEMU that nothing has connected to yet.
pub(crate) struct LaunchedQemu {
    pub(crate) qemu_log: QemuLog,
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) network: Namespace,
    pub(crate) listeners: Listeners,
    pub(crate) claim: Claim,
}

impl LaunchPlan {
    /// Starts QEMU. Blocks. Leaves nothing behind where that fails.
    pub(crate) fn launch(self, host: &Arc<Host>) -> Result<LaunchedQemu, EngineError> {
        let id = &self.spec.id;
        let outcome = self.start(host);
        if outcome.is_err() {
            host.sockets(id.as_str()).remove();
            let _ = host.records.remove(id);
            let _ = host.trees.discard(&tree_of(id));
        }
        outcome
    }

    fn start(&self, host: &Arc<Host>) -> Result<LaunchedQemu, EngineError> {
        let Self { spec, vm_spec, disk, memory, start_mode, source } = self;
        let claim = Claim::take(host, &Resources { memory_mib: vm_spec.size.memory_mib, ..spec.resources })?;
        let tap_network =
            create_tap_network(&LINK_ADDRESSES).map_err(EngineError::kernel("make a machine's network"))?;
        let listeners = Listeners::open_for_tap(&tap_network.namespace)
            .map_err(EngineError::kernel("open the gateway"))?;
        let private = disks::create_disk(host, disk, &spec.id, vm_spec.disk_mib, claim.uid_base)?;
        let sockets = host.sockets(spec.id.as_str()).listen();
        let (monitor, agent) = sockets.map_err(EngineError::kernel("make a machine's sockets"))?;
        let qemu_log = QemuLog::new().map_err(EngineError::kernel("make a log"))?;
        let kvm = open_kvm(&host.accelerator).map_err(EngineError::kernel("open /dev/kvm"))?;
        let fds = InheritedFds::new(&tap_network.tap, &monitor, &agent, kvm.as_ref());
        let inherited = [Some(&tap_network.tap), Some(&monitor), Some(&agent), kvm.as_ref()];
        let inherited = inherited.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
        let (program, arguments) =
            command_line(&host.accelerator, host.machine_type, vm_spec.size, start_mode, fds);
        let place = if matches!(start_mode, StartMode::Boot(_)) { BOOT_DIR } else { SNAPSHOT_DIR };
        let mounts = [
            BindMount::new(&host.base_images.dir_of(&vm_spec.base), BASE_DIR, true),
            BindMount::new(&private, VM_DIR, false),
            BindMount::new(memory, MEMORY_DIR, true),
            BindMount::new(source, place, true),
        ];
        let launched = mounts.into_iter().collect::<std::io::Result<Vec<BindMount>>>().and_then(|mounts| {
            spawn_qemu(QemuLaunch {
                program: &format!("/{program}"),
                arguments,
                root: BindMount::new(&host.tools.root(), "", true)?,
                root_target: &host.root_target,
                mounts,
                network: &tap_network.namespace,
                groups: claim.group.gates(),
                uid: claim.uid_base,
                largest_file: u64::from(vm_spec.disk_mib.max(disks::DEVICES_ROOM_MIB)) << 20,
                inherited,
                log: qemu_log.writer()?,
            })
        });
        let child = launched.map_err(EngineError::kernel("start QEMU"))?;
        let pid = i32::try_from(child.id()).expect("pids are positive and small");
        let note = || -> std::io::Result<OwnedFd> {
            let raw = Pid::from_raw(pid).ok_or(std::io::ErrorKind::NotFound)?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
            let record = SandboxRecord {
                process: ProcessId::of(pid)?,
                uid_base: claim.uid_base,
                cgroup: claim.group.name().to_owned(),
                vm_spec: vm_spec.clone(),
            };
            host.records.save(&spec.id, &record)?;
            Ok(pidfd)
        };
        let pidfd = note().map_err(EngineError::kernel("record the sandbox"))?;
        Ok(LaunchedQemu { qemu_log, pid, pidfd, network: tap_network.namespace, listeners, claim })
    }
}

/// Opened here, because machines run as users that may not.
fn open_kvm(accelerator: &Accelerator) -> std::io::Result<Option<OwnedFd>> {
    match accelerator {
        Accelerator::Kvm => {
            Ok(Some(std::fs::File::options().read(true).write(true).open("/dev/kvm")?.into()))
        }
        Accelerator::Tcg { .. } => Ok(None),
    }
}
