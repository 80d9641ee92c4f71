//! Disks: the image of a template's files that all its sandboxes read, and the private one that a sandbox writes.
//! A private disk is a sparse file in a volume, so a copy of it is a copy of the volume: instant where the disk can.
//! The host never looks into a disk that a guest has written.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{EngineError, SandboxId, TemplateImage};
use engine_host::{volume_error, volume_of};
use layers::VolumeName;
use sha2::{Digest, Sha256};

use crate::host::Host;
use crate::machine::command::{BASE_IMAGE, DEVICES, DISK};
use crate::machine::make_hole;

/// Room in a sandbox's volume besides its disk, MiB: the state of its devices.
const BESIDE_DISK_MIB: u32 = 64;

/// Names a template's files: equal layers in equal order, equal name.
pub(crate) fn base_key(template: &TemplateImage) -> String {
    let mut hash = Sha256::new();
    for layer in &template.layers {
        hash.update(layer.as_os_str().as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of the image with this name.
pub(crate) fn base_folder(host: &Host, key: &str) -> PathBuf {
    host.bases.join(key)
}

/// Makes the image of a template's files unless it is there; answers its name.
pub(crate) async fn prepare_base(host: &Arc<Host>, template: &TemplateImage) -> Result<String, EngineError> {
    if let Some(missing) = template.layers.iter().find(|layer| !layer.is_dir()) {
        return Err(EngineError::Template(format!("layer {} is missing", missing.display())));
    }
    let key = base_key(template);
    let image = base_folder(host, &key).join(BASE_IMAGE);
    if image.exists() {
        return Ok(key);
    }
    let lock = host.templates.lock(&key);
    let _one_at_a_time = lock.lock().await;
    let (folder, layers) = (base_folder(host, &key), template.layers.clone());
    let make = move || -> Result<(), EngineError> {
        if image.exists() {
            return Ok(());
        }
        fs::create_dir_all(&folder).map_err(EngineError::kernel("make a folder for a template's image"))?;
        guest::base::make(&layers, &image).map_err(|error| EngineError::Template(error.to_string()))?;
        // Every machine's user reads it.
        fs::set_permissions(&image, fs::Permissions::from_mode(0o444))
            .map_err(EngineError::kernel("open a template's image to machines"))
    };
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|_| EngineError::Died("making a template's image was interrupted".into()))??;
    Ok(key)
}

/// The volume with an empty, formatted disk of this size, made when it is first wanted.
pub(crate) fn blank(host: &Host, disk_mib: u32) -> Result<VolumeName, EngineError> {
    let _one_at_a_time = host.templates.making_blanks();
    let name: VolumeName = format!("blank-{disk_mib}").parse().map_err(volume_error("name a volume"))?;
    let path = host.volumes.path(&name);
    if path.join(DISK).exists() {
        return Ok(name);
    }
    host.volumes.discard(&name).map_err(volume_error("discard half a disk"))?;
    host.volumes.create(&name, None).map_err(volume_error("make a volume"))?;
    guest::base::make_empty(disk_mib, &path.join(DISK)).map_err(|error| EngineError::Kernel {
        step: "format a disk",
        source: std::io::Error::other(error),
    })?;
    Ok(name)
}

/// The size of a disk that is to have no limit, MiB: disks have a size.
pub(crate) const UNLIMITED_MIB: u32 = 64 << 10;

/// Makes a sandbox's volume from another one, for the machine with this user; answers where it is.
pub(crate) fn take(
    host: &Host,
    from: &VolumeName,
    id: &SandboxId,
    disk_mib: u32,
    uid: u32,
) -> Result<PathBuf, EngineError> {
    let own = volume_of(id);
    let limit = Some(disk_mib.saturating_add(BESIDE_DISK_MIB));
    host.volumes.copy(from, &own, false, limit).map_err(volume_error("copy a disk"))?;
    let path = host.volumes.path(&own);
    // The folder stays root's: whoever takes QEMU over can write into these two files and make no others.
    let furnish = || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        fs::write(path.join(DEVICES), "")?;
        [DISK, DEVICES].iter().try_for_each(|file| own_by(&path.join(file), uid))
    };
    furnish().map_err(EngineError::kernel("hand a disk to its machine"))?;
    Ok(path)
}

fn own_by(path: &Path, uid: u32) -> std::io::Result<()> {
    chown(path, Some(uid), Some(uid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// A folder with a hole of this size: what the memory of a booting guest begins with.
pub(crate) fn hole(host: &Host, memory_mib: u32) -> Result<PathBuf, EngineError> {
    let folder = host.holes.join(memory_mib.to_string());
    let file = folder.join(crate::machine::command::GUEST_MEMORY);
    if !file.exists() {
        let _one_at_a_time = host.templates.making_blanks();
        fs::create_dir_all(&folder)
            .and_then(|()| make_hole(&file, u64::from(memory_mib) << 20))
            .map_err(EngineError::kernel("make room for a guest's memory"))?;
    }
    Ok(folder)
}
