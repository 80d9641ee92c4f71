//! A sandbox's own files on the host: a tree with what it writes, and a record beside it.
//! The record is outside the tree: a sandbox that has filled its disk can still be captured and restored.
//! Trees are made ahead with their slots, since making one costs a create its time.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{SandboxId, SnapshotId};
use engine_host::{snapshot_tree, tree_of};
use layers::{LayerError, TreeName, Trees, renew_overlay_work};
use tracing::warn;

use crate::host::Host;

/// An empty tree that waits for its sandbox; discarded if none comes.
#[derive(Debug)]
pub(crate) struct ReadyTree {
    host: Arc<Host>,
    name: Option<TreeName>,
}

impl ReadyTree {
    /// Makes one. `number` tells it from the others of this server.
    pub(crate) fn make(host: &Arc<Host>, number: u32) -> Result<Self, LayerError> {
        let name: TreeName = format!("ready-{number:x}").parse()?;
        // Of a server that was killed.
        host.trees.discard(&name)?;
        host.trees.create(&name, None)?;
        let path = host.trees.path(&name);
        let ready = Self { host: host.clone(), name: Some(name) };
        for dir in ["upper", "work"] {
            let dir = path.join(dir);
            fs::create_dir(&dir).map_err(|source| LayerError::Io { path: dir, source })?;
        }
        Ok(ready)
    }

    /// Makes it the sandbox's own; answers where it is.
    pub(crate) fn take(&mut self, id: &SandboxId, limit_mib: u32) -> Result<PathBuf, LayerError> {
        let name = self.name.as_ref().expect("a slot is used once");
        let own = tree_of(id);
        self.host.trees.set_limit(name, limit_of(limit_mib))?;
        self.host.trees.rename(name, &own)?;
        self.name = None;
        Ok(self.host.trees.path(&own))
    }
}

impl Drop for ReadyTree {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = self.host.trees.discard(&name)
        {
            warn!(%name, %error, "an unused tree could not be discarded; the next start tries again");
        }
    }
}

/// Makes a sandbox's tree from a captured one; answers where it is.
pub(crate) fn copy_of(
    trees: &Trees,
    state: SnapshotId,
    id: &SandboxId,
    limit_mib: u32,
) -> Result<PathBuf, LayerError> {
    let own = tree_of(id);
    trees.copy(&snapshot_tree(state), &own, false, limit_of(limit_mib))?;
    let path = trees.path(&own);
    renew_overlay_work(&path.join("work"), true)?;
    Ok(path)
}

/// No limit of the sandbox's is none of the tree's.
fn limit_of(mib: u32) -> Option<u32> {
    (mib > 0).then_some(mib)
}
