//! After a crash: what lives is adopted, what does not is removed.
//! A machine is proven to be ours by its record and its process's start time, and spoken to over the sockets it still listens on.
//! Images and warm starts are kept as long as the layers they were made of are there.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{EgressPolicy, EngineError, Sandbox, SandboxId, SnapshotId};
use engine_host::{Group, remove_groups, remove_others, snapshot_tree, tree_error, tree_of};
use layers::TreeName;
use net::{Gateway, Listeners};
use sys::Namespace;
use tracing::warn;

use crate::base_images;
use crate::claim::Claim;
use crate::host::Host;
use crate::record::SandboxRecord;
use crate::sandbox::{MicrovmSandbox, SandboxParts};
use crate::snapshot::{SnapshotFiles, file_names, memory_tree, read_record};
use crate::vm::Vm;

/// Time for a guest to answer a new server; one that does not is its owner's all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes over a machine that is still alive. Its egress is closed until the caller sets the policy again.
pub(crate) async fn adopt(host: &Arc<Host>, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
    let record: SandboxRecord = host.records.load(id).map_err(|_| EngineError::NotFound)?;
    let pidfd = record.process.open().map_err(|_| EngineError::NotFound)?;
    let group = Group::open(&host.hierarchies, &record.cgroup).map_err(|_| EngineError::NotFound)?;
    group.set_frozen(false).await.map_err(EngineError::kernel("thaw an adopted sandbox"))?;
    host.uids.reserve(record.uid_base);
    let claim = Claim::of(host.clone(), record.uid_base, group);
    let vm = match Vm::connect(&host.sockets(id.as_str())).await {
        Ok(vm) => vm,
        Err(error) => {
            // Not ours to end here; the sweep decides.
            claim.leave();
            return Err(error);
        }
    };
    let open = || -> io::Result<Arc<MicrovmSandbox>> {
        let network = Namespace::of_process(record.process.pid, "net")?;
        // Whatever happens here, the sandbox is its owner's: better without a way out than not at all.
        let gateway = Listeners::open_for_tap(&network)
            .and_then(|listeners| Gateway::start(listeners, EgressPolicy::deny_all(), host.gateway.clone()))
            .inspect_err(|error| warn!(sandbox = %id, %error, "adopted without network"))
            .ok();
        let (pid, vm_spec) = (record.process.pid, record.vm_spec);
        MicrovmSandbox::watch(id.clone(), SandboxParts { pid, pidfd, network, vm, gateway, claim, vm_spec })
    };
    let sandbox = open().map_err(EngineError::kernel("adopt the sandbox"))?;
    // The former server may have died while it had the machine stopped.
    sandbox.vm.monitor.cont().await?;
    let going = async {
        sandbox.vm.guest_agent.wait_until_ready(PATIENCE).await?;
        sandbox.vm.guest_agent.resume().await
    };
    if let Err(reason) = going.await {
        warn!(sandbox = %id, reason, "the guest of an adopted sandbox does not answer");
    }
    Ok(sandbox)
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

fn sweep_blocking(host: &Host, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
    let kept: Vec<SandboxRecord> = keep.iter().filter_map(|id| host.records.load(id).ok()).collect();
    let is_kept = |name: &str| kept.iter().any(|record| record.cgroup == name);
    let mut removed = remove_groups(&host.hierarchies, is_kept)?;
    let mut wanted_bases: Vec<String> = kept.iter().map(|record| record.vm_spec.base.clone()).collect();
    let warm = sweep_warm_starts(host, &mut wanted_bases)?;
    removed += sweep_trees(host, keep, snapshots, &warm)?;
    let states: Vec<SnapshotFiles> =
        snapshots.iter().map(|id| SnapshotFiles::of_snapshot(host, *id)).collect();
    wanted_bases.extend(states.iter().filter_map(|state| state.record().ok()).map(|record| record.base));
    let files_of_states = snapshots.iter().copied().flat_map(file_names);
    let names: Vec<String> = keep.iter().map(|id| format!("{id}.json")).chain(files_of_states).collect();
    for dir in [host.records.dir(), &host.snapshots] {
        remove_others(dir, &names).map_err(EngineError::kernel("remove a stray file"))?;
    }
    for state in &states {
        host.journal_replayer.add(state, state.image(host));
    }
    base_images::sweep(&host.base_images, &wanted_bases)
        .map_err(EngineError::kernel("remove a stray image"))?;
    let mut sockets: Vec<String> = keep.iter().map(ToString::to_string).collect();
    sockets.push("root".into());
    let run_dir = host.root_target.parent().unwrap_or(&host.root_target);
    remove_others(run_dir, &sockets).map_err(EngineError::kernel("remove a stray socket"))?;
    Ok(removed)
}

/// Removes warm starts whose template is gone or that cannot be loaded any more; returns the trees of the others.
fn sweep_warm_starts(host: &Host, bases: &mut Vec<String>) -> Result<Vec<TreeName>, EngineError> {
    let mut trees = Vec::new();
    let entries = fs::read_dir(host.warm_starts.dir()).map_err(EngineError::kernel("list warm starts"))?;
    for entry in entries {
        let path = entry.map_err(EngineError::kernel("list warm starts"))?.path();
        let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let state = SnapshotFiles::of_warm_start(host, &key);
        match read_record(&path) {
            Ok(record)
                if record.compatibility == host.compatibility()
                    && record.layers.iter().all(|layer| layer.is_dir()) =>
            {
                bases.push(record.base);
                trees.extend([state.disk, state.memory]);
            }
            _ => state.discard(host)?,
        }
    }
    Ok(trees)
}

/// Returns how many things a user would call one were removed: a state is one, with its disk and memory.
fn sweep_trees(
    host: &Host,
    keep: &[SandboxId],
    snapshots: &[SnapshotId],
    warm: &[TreeName],
) -> Result<usize, EngineError> {
    let states = snapshots.iter().copied().map(snapshot_tree);
    let states = states.flat_map(|disk| [memory_tree(&disk), disk]);
    let wanted: Vec<TreeName> = keep.iter().map(tree_of).chain(states).chain(warm.iter().cloned()).collect();
    let mut removed = 0;
    for tree in host.trees.list().map_err(tree_error("list trees"))? {
        if wanted.contains(&tree) || tree.as_str().starts_with("blank-") {
            continue;
        }
        host.trees.discard(&tree).map_err(tree_error("discard a stray tree"))?;
        removed += usize::from(!tree.as_str().starts_with("m-"));
    }
    Ok(removed)
}
