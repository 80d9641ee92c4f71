//! Adopts running VMs and removes everything else that an earlier server left over.
//!
//! A VM is proven to be ours by its record and the start time of its process; its sockets still
//! listen. Base images and boot snapshots are kept as long as the layers that they were made from
//! exist.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{EgressPolicy, EngineError, Sandbox, SandboxId, SnapshotId};
use engine_host::{Group, remove_stale_groups, remove_unlisted, snapshot_tree, tree_error, tree_of};
use layers::TreeName;
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::warn;

use crate::base_images;
use crate::host::Host;
use crate::lease::Lease;
use crate::record::SandboxRecord;
use crate::sandbox::{MicrovmSandbox, SandboxParts};
use crate::snapshot::{SnapshotFiles, file_names, memory_tree, read_record};
use crate::vm::Vm;

/// Time limit for the guest to answer after an adoption; a sandbox that does not answer is adopted
/// all the same.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Adopts a VM that is still running. Its egress is closed until the caller sets the policy again.
///
/// # Errors
/// [`EngineError::NotFound`] if it has ended; or its monitor does not answer.
pub(crate) async fn adopt(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let record: SandboxRecord = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let pidfd = record.process.open().map_err(|_| EngineError::NotFound)?;
    let group = Group::open(&host.hierarchies, &record.cgroup).map_err(|_| EngineError::NotFound)?;
    group.set_frozen(false).await.map_err(EngineError::kernel("thaw an adopted sandbox"))?;
    let lease = Lease::adopt(host, record.uid_base, group);
    let vm = match Vm::connect(&host.sockets(id.as_str())).await {
        Ok(vm) => vm,
        Err(error) => {
            // The sweep decides whether to end it.
            lease.leave();
            return Err(error);
        }
    };
    let open = || -> io::Result<Arc<MicrovmSandbox>> {
        let network = Namespace::of_process(record.process.pid, "net")?;
        // A sandbox without outgoing network is better for its owner than none.
        let gateway = Listeners::open_for_tap(&network)
            .and_then(|listeners| {
                Gateway::start(id.as_str(), listeners, EgressPolicy::deny_all(), host.gateway.clone())
            })
            .inspect_err(|error| warn!(sandbox_id = %id, %error, "adopted without outgoing network"))
            .ok();
        let (pid, vm_spec) = (record.process.pid, record.vm_spec);
        MicrovmSandbox::watch(id.clone(), SandboxParts { pid, pidfd, network, vm, gateway, lease, vm_spec })
    };
    let sandbox = open().map_err(EngineError::kernel("adopt the sandbox"))?;
    // The former server may have died while the VM was stopped.
    sandbox.vm.monitor.cont().await?;
    let resumed = async {
        sandbox.vm.guest_agent.wait_until_ready(READY_TIMEOUT).await?;
        sandbox.vm.guest_agent.resume().await
    };
    if let Err(reason) = resumed.await {
        warn!(sandbox_id = %id, reason, "the guest of an adopted sandbox does not answer");
    }
    Ok(sandbox)
}

/// Ends and removes everything of this server that is neither in `keep` nor in `snapshots`; returns
/// how many objects were removed.
///
/// # Errors
/// Something cannot be removed.
pub(crate) async fn sweep(
    host: &Arc<Host>,
    keep: &[SandboxId],
    snapshots: &[SnapshotId],
) -> Result<usize, EngineError> {
    let (host, keep, snapshots) = (host.clone(), keep.to_vec(), snapshots.to_vec());
    let swept = tokio::task::spawn_blocking(move || sweep_blocking(&host, &keep, &snapshots)).await;
    swept.map_err(|_| EngineError::Died("the sweep was interrupted".into()))?
}

fn sweep_blocking(host: &Host, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
    let kept: Vec<SandboxRecord> = keep.iter().filter_map(|id| host.records.load(id).ok()).collect();
    let is_kept = |name: &str| kept.iter().any(|record| record.cgroup == name);
    let mut removed = remove_stale_groups(&host.hierarchies, is_kept)?;
    let mut wanted_bases: Vec<String> = kept.iter().map(|record| record.vm_spec.base.clone()).collect();
    let boot_snapshots = sweep_boot_snapshots(host, &mut wanted_bases)?;
    removed += sweep_trees(host, keep, snapshots, &boot_snapshots)?;
    let kept_snapshots: Vec<SnapshotFiles> =
        snapshots.iter().map(|id| SnapshotFiles::of_snapshot(host, *id)).collect();
    wanted_bases.extend(
        kept_snapshots.iter().filter_map(|snapshot| snapshot.record().ok()).map(|record| record.base),
    );
    let files_of_snapshots = snapshots.iter().copied().flat_map(file_names);
    let names: Vec<String> = keep.iter().map(|id| format!("{id}.json")).chain(files_of_snapshots).collect();
    for dir in [host.records.dir(), &host.snapshots] {
        remove_unlisted(dir, &names).map_err(EngineError::kernel("remove a stale file"))?;
    }
    for snapshot in &kept_snapshots {
        host.journal_replayer.add(snapshot, snapshot.image(host));
    }
    base_images::sweep(&host.base_images, &wanted_bases)
        .map_err(EngineError::kernel("remove a stale image"))?;
    let mut sockets: Vec<String> = keep.iter().map(ToString::to_string).collect();
    sockets.push("root".into());
    let run_dir = host.root_target.parent().unwrap_or(&host.root_target);
    remove_unlisted(run_dir, &sockets).map_err(EngineError::kernel("remove a stale socket"))?;
    Ok(removed)
}

/// Removes boot snapshots whose template no longer exists or that cannot be restored; returns the
/// trees of the others and adds the keys of their base images to `bases`.
fn sweep_boot_snapshots(host: &Host, bases: &mut Vec<String>) -> Result<Vec<TreeName>, EngineError> {
    let mut trees = Vec::new();
    let entries =
        fs::read_dir(host.boot_snapshots.dir()).map_err(EngineError::kernel("list boot snapshots"))?;
    for entry in entries {
        let path = entry.map_err(EngineError::kernel("list boot snapshots"))?.path();
        let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let snapshot = SnapshotFiles::of_boot_snapshot(host, &key);
        match read_record(&path) {
            Ok(record)
                if record.compatibility == host.compatibility()
                    && record.layers.iter().all(|layer| layer.is_dir()) =>
            {
                bases.push(record.base);
                trees.extend([snapshot.disk, snapshot.memory]);
            }
            _ => snapshot.discard(host)?,
        }
    }
    Ok(trees)
}

/// Removes the trees of other sandboxes and snapshots; returns how many. The two trees of a
/// snapshot count as one.
fn sweep_trees(
    host: &Host,
    keep: &[SandboxId],
    snapshots: &[SnapshotId],
    boot_snapshots: &[TreeName],
) -> Result<usize, EngineError> {
    let of_snapshots = snapshots.iter().copied().map(snapshot_tree);
    let of_snapshots = of_snapshots.flat_map(|disk| [memory_tree(&disk), disk]);
    let wanted: Vec<TreeName> =
        keep.iter().map(tree_of).chain(of_snapshots).chain(boot_snapshots.iter().cloned()).collect();
    let mut removed = 0;
    for tree in host.trees.list().map_err(tree_error("list writable trees"))? {
        if wanted.contains(&tree) || tree.as_str().starts_with("blank-") {
            continue;
        }
        host.trees.discard(&tree).map_err(tree_error("remove a stale tree"))?;
        removed += usize::from(!tree.as_str().starts_with("m-"));
    }
    Ok(removed)
}
