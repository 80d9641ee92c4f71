//! After a crash: what lives is adopted, what does not is removed.
//! A sandbox is proven to be ours by its record and its process's start time; a group without an adopted sandbox is emptied.
//! Runs once at start, before anything new is made; a sandbox that is still being dumped is adopted later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{EgressPolicy, EngineError, Sandbox, SandboxId, SnapshotId};
use engine_host::{Group, remove_groups, remove_others, snapshot_tree, tree_error, tree_of};
use layers::TreeName;
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::warn;

use crate::capture::{State, half_made_name, remove_dir};
use crate::criu::remove_prepared;
use crate::host::Host;
use crate::record::Record;
use crate::sandbox::ContainerSandbox;
use crate::slot::Claim;

/// Takes over a sandbox that is still alive. Its egress is closed until the caller sets the policy again.
pub(crate) async fn adopt(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let lock = host.records.try_lock(id).map_err(|_| EngineError::NotFound)?;
    let record: Record = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let Some(_lock) = lock else {
        // A dump that the former server had begun goes on without it. Nobody else may have its ids meanwhile.
        host.uids.reserve(record.uid_base);
        return Err(EngineError::Capturing);
    };
    take_over(host, id, &record).await
}

/// Takes over a sandbox once its dump has ended or was ended. Cut off in the middle it may have lost its processes with it.
pub(crate) async fn adopt_late(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let record: Record = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let adopted = async {
        let (_lock, was_ended) = host
            .records
            .lock_within(id, patience(host, &record))
            .await
            .map_err(EngineError::kernel("wait for a memory dump that an earlier server began"))?;
        if was_ended {
            warn!(sandbox = %id, "a memory dump that an earlier server began hung and was ended");
        }
        take_over(host, id, &record).await
    };
    let error = match adopted.await {
        Ok(sandbox) => return Ok(sandbox),
        Err(error) => error,
    };
    let (host, id) = (host.clone(), id.clone());
    let _ = tokio::task::spawn_blocking(move || clear(&host, &id, &record)).await;
    Err(error)
}

/// How long a dump of this sandbox may take: all its memory has to be written.
fn patience(host: &Host, record: &Record) -> Duration {
    let group = Group::open(&host.hierarchies, &record.cgroup);
    let bytes = group.and_then(|group| group.stats()).map_or(0, |stats| stats.memory_bytes);
    let size_mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    // A server that has no CRIU any more has nothing to wait for: there is no way to be patient with what it does not know.
    host.memory().map_or(Duration::ZERO, |memory| memory.patience(size_mib))
}

/// With its lock held: nobody has a hand in its processes.
async fn take_over(
    host: &Arc<Host>,
    id: &SandboxId,
    record: &Record,
) -> Result<Arc<dyn Sandbox>, EngineError> {
    // Of a capture that the former server did not finish.
    if let Err(error) = remove_dir(&host.snapshots.join(half_made_name(id))) {
        warn!(sandbox = %id, %error, "a half-made state could not be removed");
    }
    let pidfd = record.process.open().map_err(|_| EngineError::NotFound)?;
    let group = Group::open(&host.hierarchies, &record.cgroup).map_err(|_| EngineError::NotFound)?;
    group.set_frozen(false).await.map_err(EngineError::kernel("thaw an adopted sandbox"))?;
    let open = || -> io::Result<Arc<ContainerSandbox>> {
        let network = Namespace::of_process(record.process.pid, "net")?;
        host.uids.reserve(record.uid_base);
        let claim = Claim::new(host.clone(), record.uid_base, group);
        // Whatever happens here, the sandbox is its owner's: better without a way out than not at all.
        let gateway = Listeners::open(&network)
            .and_then(|listeners| Gateway::start(listeners, EgressPolicy::deny_all(), host.gateway.clone()))
            .inspect_err(|error| warn!(sandbox = %id, %error, "adopted without network: its gateway's ports are taken"))
            .ok();
        ContainerSandbox::watch(host.clone(), id.clone(), pidfd, network, gateway, claim)
    };
    Ok(open().map_err(EngineError::kernel("adopt the sandbox"))?)
}

/// Ends and removes what is left of a sandbox that the sweep has kept and that could not be taken over after all.
fn clear(host: &Arc<Host>, id: &SandboxId, record: &Record) {
    if let Ok(group) = Group::open(&host.hierarchies, &record.cgroup) {
        if let Err(error) = group.kill() {
            warn!(sandbox = %id, %error, "a process of a lost sandbox does not die");
        }
        // Dropped, it removes the group and gives the ids back.
        drop(Claim::new(host.clone(), record.uid_base, group));
    }
    if let Err(error) = host.trees.discard(&tree_of(id)) {
        warn!(sandbox = %id, %error, "a lost sandbox's files could not be discarded");
    }
    let kept = remove_dir(&host.snapshots.join(half_made_name(id))).and_then(|()| host.records.remove(id));
    if let Err(error) = kept {
        warn!(sandbox = %id, %error, "a lost sandbox's remains could not be removed");
    }
}

/// Ends and removes everything of this server that is not in `keep`.
pub(crate) async fn sweep(
    host: &Arc<Host>,
    keep: &[SandboxId],
    snapshots: &[SnapshotId],
) -> Result<usize, EngineError> {
    let (host, keep, snapshots) = (host.clone(), keep.to_vec(), snapshots.to_vec());
    let swept = tokio::task::spawn_blocking(move || sweep_blocking(&host, &keep, &snapshots)).await;
    swept.map_err(|_| EngineError::Died("the sweep was interrupted".into()))?
}

/// Whether a slot of this very process holds the group.
fn in_use(host: &Host, group: &str) -> bool {
    let base = group.strip_prefix('s').and_then(|hex| u32::from_str_radix(hex, 16).ok());
    base.is_some_and(|base| host.uids.is_used(base))
}

fn sweep_blocking(host: &Host, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
    let kept_groups: Vec<String> =
        keep.iter().filter_map(|id| Some(host.records.load::<Record>(id).ok()?.cgroup)).collect();
    for id in host.records.list().map_err(EngineError::kernel("list records"))? {
        // First whoever has a hand in its processes: it would hang on, or hold their names.
        if !keep.contains(&id)
            && let Err(error) = host.records.end_captures(&id)
        {
            warn!(sandbox = %id, %error, "the capture of a sandbox that nobody owns could not be ended");
        }
    }
    let is_kept = |name: &str| kept_groups.iter().any(|kept| kept == name) || in_use(host, name);
    let mut removed = remove_groups(&host.hierarchies, is_kept)?;
    let mut wanted: Vec<TreeName> = keep.iter().map(tree_of).collect();
    wanted.extend(snapshots.iter().copied().map(snapshot_tree));
    for tree in host.trees.list().map_err(tree_error("list trees"))? {
        // A slot's own.
        if !wanted.contains(&tree) && !in_use(host, &tree.as_str().replace("ready-", "s")) {
            host.trees.discard(&tree).map_err(tree_error("discard a stray tree"))?;
            removed += 1;
        }
    }
    // One that is still being dumped has files written into its half-made state; whoever adopts it removes that.
    let of_sandbox = |id: &SandboxId| [format!("{id}.json"), half_made_name(id)];
    let states = snapshots.iter().map(ToString::to_string);
    let names: Vec<String> = keep.iter().flat_map(of_sandbox).chain(states).collect();
    for dir in [host.records.dir(), &host.snapshots] {
        remove_others(dir, &names).map_err(EngineError::kernel("remove a stray file"))?;
    }
    for id in snapshots {
        if let Err(error) = remove_prepared(&State::of(host, *id).memory()) {
            warn!(state = %id, %error, "what restores of a state have left could not be removed");
        }
    }
    Ok(removed)
}
