//! Launching one QEMU from its parts: network, disk, sockets, mounts, command line.
//!
//! Booting and restoring differ only in the mounts and the command line. Nothing has connected to
//! QEMU yet when [`LaunchPlan::launch`] returns.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use engine::{EngineError, Resources, StartSpec};
use engine_host::{ProcessId, tree_of};
use guest_api::network;
use layers::TreeName;
use net::{LinkAddresses, Listeners, TapNetwork, create_tap_network};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sys::Namespace;

use crate::accelerator::Accelerator;
use crate::disks;
use crate::host::Host;
use crate::lease::{self, Lease};
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
    pub(crate) lease: Lease,
}

impl LaunchPlan {
    /// Starts QEMU and writes the record of the sandbox. Blocks.
    ///
    /// # Errors
    /// The host has no free user ids, no room on the disk, or QEMU does not start. Nothing is left over then.
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
        let Self { spec, vm_spec, .. } = self;
        let lease = lease::take(host, &Resources { memory_mib: vm_spec.size.memory_mib, ..spec.resources })?;
        let network =
            create_tap_network(&LINK_ADDRESSES).map_err(EngineError::kernel("create a tap network"))?;
        let listeners =
            Listeners::open_for_tap(&network.namespace).map_err(EngineError::kernel("open the gateway"))?;
        let qemu_log = QemuLog::new().map_err(EngineError::kernel("create QEMU's log"))?;
        let pid = self.spawn(host, &lease, &network, &qemu_log)?;
        let pidfd =
            self.record(host, &lease, pid).map_err(EngineError::kernel("write the record of a sandbox"))?;
        Ok(LaunchedQemu { qemu_log, pid, pidfd, network: network.namespace, listeners, lease })
    }

    /// Creates the disk and the sockets and starts QEMU with them; returns its pid.
    fn spawn(
        &self,
        host: &Host,
        lease: &Lease,
        network: &TapNetwork,
        log: &QemuLog,
    ) -> Result<i32, EngineError> {
        let Self { spec, vm_spec, disk, memory, start_mode, source } = self;
        let private = disks::create_disk(host, disk, &spec.id, vm_spec.disk_mib, lease.uid_base)?;
        let sockets = host.sockets(spec.id.as_str()).listen();
        let (monitor, agent) = sockets.map_err(EngineError::kernel("create the sockets of a VM"))?;
        let kvm = open_kvm(&host.accelerator).map_err(EngineError::kernel("open /dev/kvm"))?;
        let fds = InheritedFds::new(&network.tap, &monitor, &agent, kvm.as_ref());
        let inherited = [Some(&network.tap), Some(&monitor), Some(&agent), kvm.as_ref()];
        let inherited = inherited.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
        let (program, arguments) =
            command_line(&host.accelerator, host.machine_type, vm_spec.size, start_mode, fds);
        let source_dir = if matches!(start_mode, StartMode::Boot(_)) { BOOT_DIR } else { SNAPSHOT_DIR };
        let spawn = || {
            let mounts = vec![
                BindMount::new(&host.base_images.dir_of(&vm_spec.base), BASE_DIR, true)?,
                BindMount::new(&private, VM_DIR, false)?,
                BindMount::new(memory, MEMORY_DIR, true)?,
                BindMount::new(source, source_dir, true)?,
            ];
            spawn_qemu(QemuLaunch {
                program: &format!("/{program}"),
                arguments,
                root: BindMount::new(&host.tools.root(), "", true)?,
                root_target: &host.root_target,
                mounts,
                network: &network.namespace,
                groups: lease.group.procs_files(),
                uid: lease.uid_base,
                max_file_bytes: u64::from(vm_spec.disk_mib.max(disks::DEVICES_ROOM_MIB)) << 20,
                inherited,
                log: log.writer()?,
            })
        };
        let child = spawn().map_err(EngineError::kernel("start QEMU"))?;
        Ok(i32::try_from(child.id()).expect("pids are positive and small"))
    }

    /// Writes the record of the sandbox; returns a descriptor of its process.
    fn record(&self, host: &Host, lease: &Lease, pid: i32) -> io::Result<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        let record = SandboxRecord {
            process: ProcessId::of(pid)?,
            uid_base: lease.uid_base,
            cgroup: lease.group.name().to_owned(),
            vm_spec: self.vm_spec.clone(),
        };
        host.records.save(&self.spec.id, &record)?;
        Ok(pidfd)
    }
}

/// Opens `/dev/kvm` if KVM is the accelerator: QEMU runs as a user that may not.
fn open_kvm(accelerator: &Accelerator) -> io::Result<Option<OwnedFd>> {
    match accelerator {
        Accelerator::Kvm => {
            Ok(Some(std::fs::File::options().read(true).write(true).open("/dev/kvm")?.into()))
        }
        Accelerator::Tcg { .. } => Ok(None),
    }
}
