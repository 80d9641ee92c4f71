//! A sandbox's own files on the host: a volume with what it writes, and a record beside it.
//! The record is outside the volume: a sandbox that has filled its disk can still be captured and restored.
//! Volumes are made ahead with their slots, since making one costs a create its time.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{SandboxId, SnapshotId};
use engine_host::{state_volume, volume_of};
use layers::{LayerError, VolumeName, Volumes, renew_overlay_work};
use tracing::warn;

use crate::host::Host;

/// An empty volume that waits for its sandbox; discarded if none comes.
#[derive(Debug)]
pub(crate) struct ReadyVolume {
    host: Arc<Host>,
    name: Option<VolumeName>,
}

impl ReadyVolume {
    /// Makes one. `number` tells it from the others of this server.
    pub(crate) fn make(host: &Arc<Host>, number: u32) -> Result<Self, LayerError> {
        let name: VolumeName = format!("ready-{number:x}").parse()?;
        // Of a server that was killed.
        host.volumes.discard(&name)?;
        host.volumes.create(&name, None)?;
        let path = host.volumes.path(&name);
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
        let own = volume_of(id);
        self.host.volumes.set_limit(name, limit_of(limit_mib))?;
        self.host.volumes.rename(name, &own)?;
        self.name = None;
        Ok(self.host.volumes.path(&own))
    }
}

impl Drop for ReadyVolume {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = self.host.volumes.discard(&name)
        {
            warn!(%name, %error, "an unused volume could not be discarded; the next start tries again");
        }
    }
}

/// Makes a sandbox's volume from a captured one; answers where it is.
pub(crate) fn copy_of(
    volumes: &Volumes,
    state: SnapshotId,
    id: &SandboxId,
    limit_mib: u32,
) -> Result<PathBuf, LayerError> {
    let own = volume_of(id);
    volumes.copy(&state_volume(state), &own, false, limit_of(limit_mib))?;
    let path = volumes.path(&own);
    renew_overlay_work(&path.join("work"), true)?;
    Ok(path)
}

/// No limit of the sandbox's is none of the volume's.
fn limit_of(mib: u32) -> Option<u32> {
    (mib > 0).then_some(mib)
}
