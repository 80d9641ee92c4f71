//! The parts that a machine is put together from, and putting them together: network, disk, sockets, views, and QEMU in them.
//! Whether it boots or loads a state is only in what it is shown and told.
//! Nobody has spoken with it when it is handed over.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use engine::{EngineError, Resources, StartSpec};
use engine_host::{ProcessId, volume_of};
use guest_api::network;
use layers::VolumeName;
use net::{LinkAddresses, Listeners, create_tap_network};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sys::Namespace;

use crate::accelerator::Accelerator;
use crate::claim::Claim;
use crate::disks;
use crate::host::Host;
use crate::machine::command::{BASE, BOOT, Beginning, MEMORY, OWN, STATE, command_line};
use crate::machine::{Complaints, Launch, View, launch, numbers};
use crate::record::{Build, Record};

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

/// All that a machine is made of.
pub(crate) struct Plan {
    pub(crate) spec: StartSpec,
    pub(crate) build: Build,
    pub(crate) disk: VolumeName,
    /// Directory with what its memory begins with.
    pub(crate) memory: PathBuf,
    pub(crate) beginning: Beginning,
    /// Directory with what is started: kernel and initramfs, or a state.
    pub(crate) source: PathBuf,
}

/// A QEMU that runs and nobody has spoken with yet.
pub(crate) struct Started {
    pub(crate) complaints: Complaints,
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) network: Namespace,
    pub(crate) listeners: Listeners,
    pub(crate) claim: Claim,
}

impl Plan {
    /// Starts QEMU. Blocks. Leaves nothing behind where that fails.
    pub(crate) fn carry_out(self, host: &Arc<Host>) -> Result<Started, EngineError> {
        let id = &self.spec.id;
        let outcome = self.start(host);
        if outcome.is_err() {
            host.sockets(id.as_str()).remove();
            let _ = host.records.remove(id);
            let _ = host.volumes.discard(&volume_of(id));
        }
        outcome
    }

    fn start(&self, host: &Arc<Host>) -> Result<Started, EngineError> {
        let Self { spec, build, disk, memory, beginning, source } = self;
        let claim = Claim::take(host, &Resources { memory_mib: build.shape.memory_mib, ..spec.resources })?;
        let tap_network =
            create_tap_network(&LINK_ADDRESSES).map_err(EngineError::kernel("make a machine's network"))?;
        let listeners = Listeners::open_for_tap(&tap_network.namespace)
            .map_err(EngineError::kernel("open the gateway"))?;
        let private = disks::take(host, disk, &spec.id, build.disk_mib, claim.uid_base)?;
        let sockets = host.sockets(spec.id.as_str()).listen();
        let (monitor, agent) = sockets.map_err(EngineError::kernel("make a machine's sockets"))?;
        let complaints = Complaints::new().map_err(EngineError::kernel("make a log"))?;
        let kvm = open_kvm(&host.accelerator).map_err(EngineError::kernel("open /dev/kvm"))?;
        let fds = numbers(&tap_network.tap, &monitor, &agent, kvm.as_ref());
        let inherited = [Some(&tap_network.tap), Some(&monitor), Some(&agent), kvm.as_ref()];
        let inherited = inherited.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
        let (program, arguments) = command_line(&host.accelerator, host.machine, build.shape, beginning, fds);
        let place = if matches!(beginning, Beginning::Boot(_)) { BOOT } else { STATE };
        let views = [
            View::new(&host.bases.dir_of(&build.base), BASE, true),
            View::new(&private, OWN, false),
            View::new(memory, MEMORY, true),
            View::new(source, place, true),
        ];
        let launched = views.into_iter().collect::<std::io::Result<Vec<View>>>().and_then(|views| {
            launch(Launch {
                program: &format!("/{program}"),
                arguments,
                root: View::new(&host.tools.root(), "", true)?,
                root_target: &host.root_target,
                views,
                network: &tap_network.namespace,
                groups: claim.group.gates(),
                uid: claim.uid_base,
                largest_file: u64::from(build.disk_mib.max(disks::BESIDE_DISK_MIB)) << 20,
                inherited,
                log: complaints.writer()?,
            })
        });
        let child = launched.map_err(EngineError::kernel("start QEMU"))?;
        let pid = i32::try_from(child.id()).expect("pids are positive and small");
        let note = || -> std::io::Result<OwnedFd> {
            let raw = Pid::from_raw(pid).ok_or(std::io::ErrorKind::NotFound)?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
            let record = Record {
                process: ProcessId::of(pid)?,
                uid_base: claim.uid_base,
                cgroup: claim.group.name().to_owned(),
                build: build.clone(),
            };
            host.records.save(&spec.id, &record)?;
            Ok(pidfd)
        };
        let pidfd = note().map_err(EngineError::kernel("record the sandbox"))?;
        Ok(Started { complaints, pid, pidfd, network: tap_network.namespace, listeners, claim })
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
