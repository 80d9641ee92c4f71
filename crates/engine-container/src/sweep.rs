//! After a restart of the server: adopts the sandboxes that still run and removes everything else.
//! A sandbox is known by its record and by the start time of its PID 1; a control group without an adopted sandbox is emptied.
//! Runs once at the start, before anything new is made. A sandbox whose memory is still being dumped is adopted later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{EgressPolicy, EngineError, Sandbox, SandboxId, SnapshotId};
use engine_host::{Group, remove_stale_groups, remove_unlisted, snapshot_tree, tree_error, tree_of};
use layers::TreeName;
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::warn;

use crate::capture::{SnapshotFiles, partial_name, remove_dir};
use crate::criu::remove_restore_dirs;
use crate::echo::allow_limited_echo;
use crate::host::{Host, Lease};
use crate::private_tree::is_prepared_tree_in_use;
use crate::record::SandboxRecord;
use crate::sandbox::ContainerSandbox;

/// Takes over a running sandbox. Nothing gets out of it until the caller sets its egress policy.
///
/// # Errors
/// As [`engine::Engine::adopt`].
pub(crate) async fn adopt(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let lock = host.records.try_lock(id).map_err(|_| EngineError::NotFound)?;
    let record: SandboxRecord = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let Some(_lock) = lock else {
        // A dump that the earlier server had begun continues without it. No other sandbox may have the ids meanwhile.
        host.uids.reserve(record.uid_base);
        return Err(EngineError::Capturing);
    };
    take_over(host, id, &record).await
}

/// Takes over a sandbox once its dump has ended or was killed. A dump that is killed may take the sandbox's processes with it.
///
/// # Errors
/// As [`engine::Engine::adopt_late`].
pub(crate) async fn adopt_late(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let record: SandboxRecord = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let adopted = async {
        let (_lock, was_killed) = host
            .records
            .lock_within(id, dump_timeout(host, &record))
            .await
            .map_err(EngineError::kernel("wait for a memory dump that an earlier server began"))?;
        if was_killed {
            warn!(sandbox_id = %id, "killed a memory dump of an earlier server, because it hung");
        }
        take_over(host, id, &record).await
    };
    let error = match adopted.await {
        Ok(sandbox) => return Ok(sandbox),
        Err(error) => error,
    };
    let (host, id) = (host.clone(), id.clone());
    let _ = tokio::task::spawn_blocking(move || remove_lost(&host, &id, &record)).await;
    Err(error)
}

/// Returns how long a dump of this sandbox may be silent; all its memory has to be written.
fn dump_timeout(host: &Host, record: &SandboxRecord) -> Duration {
    let group = Group::open(&host.hierarchies, &record.cgroup);
    let bytes = group.and_then(|group| group.stats()).map_or(0, |stats| stats.memory_bytes);
    let size_mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    // Without CRIU this server knows no timeout.
    host.checkpointer().map_or(Duration::ZERO, |checkpointer| checkpointer.timeout(size_mib))
}

/// Adopts a sandbox whose lock the caller holds, so that no dump is working on its processes.
async fn take_over(
    host: &Arc<Host>,
    id: &SandboxId,
    record: &SandboxRecord,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    // Of a capture that the earlier server did not finish.
    if let Err(error) = remove_dir(&host.snapshots.join(partial_name(id))) {
        warn!(sandbox_id = %id, %error, "failed to remove a partial snapshot");
    }
    let pidfd = record.process.open().map_err(|_| EngineError::NotFound)?;
    let group = Group::open(&host.hierarchies, &record.cgroup).map_err(|_| EngineError::NotFound)?;
    group.set_frozen(false).await.map_err(EngineError::kernel("thaw an adopted sandbox"))?;
    let open = || -> io::Result<Arc<ContainerSandbox>> {
        let network = Namespace::of_process(record.process.pid, "net")?;
        // Of an earlier version, perhaps, that did not allow it.
        allow_limited_echo(host.echo_limit.as_ref(), &group, &network);
        let lease = Lease::adopt(host, record.uid_base, group);
        // A sandbox without a way out is better than none, so the adoption continues without a gateway.
        let gateway = Listeners::open(&network)
            .and_then(|listeners| Gateway::start(id.as_str(), listeners, EgressPolicy::deny_all(), host.gateway.clone()))
            .inspect_err(|error| {
                warn!(sandbox_id = %id, %error, "adopted a sandbox without network: its gateway's ports are taken");
            })
            .ok();
        let processors = host.processors.adopt(record.process.pid);
        ContainerSandbox::watch(id.clone(), pidfd, network, gateway, processors, lease)
    };
    Ok(open().map_err(EngineError::kernel("adopt the sandbox"))?)
}

/// Kills the processes and removes the files of a sandbox that the sweep has kept but that could not be adopted.
fn remove_lost(host: &Arc<Host>, id: &SandboxId, record: &SandboxRecord) {
    if let Ok(group) = Group::open(&host.hierarchies, &record.cgroup) {
        let lease = Lease::adopt(host, record.uid_base, group);
        lease.kill_processes(id);
        // Removes the group and gives the ids back.
        drop(lease);
    }
    if let Err(error) = remove_dir(&host.snapshots.join(partial_name(id))) {
        warn!(sandbox_id = %id, %error, "failed to remove a partial snapshot");
    }
    host.remove_sandbox(id);
}

/// Kills and removes all sandboxes of this server that are not in `keep` and all snapshots that are not in `snapshots`. Returns how
/// many were removed.
///
/// # Errors
/// Something cannot be listed or removed.
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
    kill_captures(host, keep)?;
    let kept_groups: Vec<String> =
        keep.iter().filter_map(|id| Some(host.records.load::<SandboxRecord>(id).ok()?.cgroup)).collect();
    let is_kept = |name: &str| kept_groups.iter().any(|kept| kept == name) || host.is_group_in_use(name);
    let removed = remove_stale_groups(&host.hierarchies, is_kept)? + sweep_trees(host, keep, snapshots)?;
    // A sandbox that is still being dumped has a partial snapshot; its adoption removes that.
    let of_sandbox = |id: &SandboxId| [format!("{id}.json"), partial_name(id)];
    let of_snapshots = snapshots.iter().map(ToString::to_string);
    let names: Vec<String> = keep.iter().flat_map(of_sandbox).chain(of_snapshots).collect();
    for dir in [host.records.dir(), &host.snapshots] {
        remove_unlisted(dir, &names).map_err(EngineError::kernel("remove a stale file"))?;
    }
    for id in snapshots {
        if let Err(error) = remove_restore_dirs(&SnapshotFiles::of(host, *id).memory()) {
            warn!(snapshot_id = %id, %error, "failed to remove what interrupted restores of a snapshot left over");
        }
    }
    Ok(removed)
}

/// Kills the memory dumps of sandboxes that are not kept, before their processes: such a dump would hang, or hold their names.
fn kill_captures(host: &Host, keep: &[SandboxId]) -> Result<(), EngineError> {
    for id in host.records.list().map_err(EngineError::kernel("list records"))? {
        if !keep.contains(&id)
            && let Err(error) = host.records.kill_captures(&id)
        {
            warn!(sandbox_id = %id, %error, "failed to kill the memory dump of a stale sandbox");
        }
    }
    Ok(())
}

/// Removes the trees of sandboxes and snapshots that are not kept; returns how many.
fn sweep_trees(host: &Host, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
    let mut kept: Vec<TreeName> = keep.iter().map(tree_of).collect();
    kept.extend(snapshots.iter().copied().map(snapshot_tree));
    let mut removed = 0;
    for tree in host.trees.list().map_err(tree_error("list trees"))? {
        if !kept.contains(&tree) && !is_prepared_tree_in_use(host, &tree) {
            host.trees.discard(&tree).map_err(tree_error("remove a stale tree"))?;
            removed += 1;
        }
    }
    Ok(removed)
}
