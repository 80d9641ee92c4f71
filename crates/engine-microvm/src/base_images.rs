//! Base images: the merged layers of a template as one read-only disk image, shared by all of its
//! sandboxes.
//!
//! Base images are large and can be built again at any time. An image that only build steps used is
//! removed with the last sandbox that uses it; an image of a template is kept as long as its layers
//! exist. A [`BaseImage`] is a reference that prevents removal.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use engine::{EngineError, TemplateImage};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::host::Host;
use crate::snapshot::read_record;
use crate::vm::command_line::BASE_IMAGE_FILE;

/// File with the paths of the layers that the image was built from, as JSON.
const LAYERS: &str = "layers.json";
/// File that marks images to keep: more sandboxes of the template are expected.
const KEPT: &str = "kept";

/// A reference to a base image; the image is not removed while one exists.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    /// Name of the image: a hash of the layers, in order.
    pub(crate) key: String,
    _reference: Arc<()>,
}

/// The base images of this server.
#[derive(Debug)]
pub(crate) struct BaseImages {
    dir: PathBuf,
    references: Mutex<HashMap<String, Weak<()>>>,
}

impl BaseImages {
    pub(crate) fn open(dir: PathBuf) -> Self {
        Self { dir, references: Mutex::default() }
    }

    /// Returns the directory of the image with this key.
    pub(crate) fn dir_of(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Returns a reference to an image, whether or not it exists yet.
    pub(crate) fn acquire(&self, key: &str) -> BaseImage {
        let mut references = self.references();
        let reference = references.get(key).and_then(Weak::upgrade).unwrap_or_default();
        references.insert(key.to_owned(), Arc::downgrade(&reference));
        BaseImage { key: key.to_owned(), _reference: reference }
    }

    fn references(&self) -> MutexGuard<'_, HashMap<String, Weak<()>>> {
        self.references.lock()
    }
}

fn key_of(layers: &[PathBuf]) -> String {
    let mut hash = Sha256::new();
    for layer in layers {
        hash.update(layer.as_os_str().as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the base image of a template and builds it if it does not exist. With `recurring`, the
/// image is kept for later sandboxes.
///
/// # Errors
/// A layer is missing or cannot be read, or there is no room on the disk.
pub(crate) async fn prepare(
    host: &Arc<Host>,
    template: &TemplateImage,
    recurring: bool,
) -> Result<BaseImage, EngineError> {
    if let Some(missing) = template.layers.iter().find(|layer| !layer.is_dir()) {
        return Err(EngineError::Template(format!("layer {} is missing", missing.display())));
    }
    let base = host.base_images.acquire(&key_of(&template.layers));
    let dir = host.base_images.dir_of(&base.key);
    if !dir.join(BASE_IMAGE_FILE).exists() {
        let lock = host.boot_snapshots.lock(&base.key);
        let _one_at_a_time = lock.lock().await;
        let (dir, layers) = (dir.clone(), template.layers.clone());
        let built = tokio::task::spawn_blocking(move || build(&dir, &layers)).await;
        built.map_err(|_| EngineError::Died("building a base image was interrupted".into()))??;
    }
    if recurring {
        fs::write(dir.join(KEPT), "").map_err(EngineError::kernel("mark a base image as kept"))?;
    }
    Ok(base)
}

fn build(dir: &Path, layers: &[PathBuf]) -> Result<(), EngineError> {
    let image = dir.join(BASE_IMAGE_FILE);
    if image.exists() {
        return Ok(());
    }
    let note = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join(LAYERS), serde_json::to_vec(layers)?)
    };
    note().map_err(EngineError::kernel("create the directory of a base image"))?;
    guest::disk_images::build_base(layers, &image)
        .map_err(|error| EngineError::Template(error.to_string()))?;
    // Every QEMU process runs as a user of its own and reads it.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444))
        .map_err(EngineError::kernel("set permissions of a base image"))
}

/// Drops a reference and removes the image if nothing needs it any more. Blocks.
pub(crate) fn release(host: &Host, base: BaseImage) {
    let key = base.key.clone();
    drop(base);
    let mut references = host.base_images.references();
    if references.get(&key).is_some_and(|reference| reference.strong_count() > 0) {
        return;
    }
    references.remove(&key);
    let dir = host.base_images.dir_of(&key);
    let dirs = [host.snapshots.as_path(), host.boot_snapshots.dir()];
    if dir.join(KEPT).exists() || dirs.iter().any(|dir| is_used_by_snapshots(dir, &key)) {
        return;
    }
    // The lock is held, so no new reference can appear before the image is removed.
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(key, %error, "failed to remove an unused base image");
        }
        _ => {}
    }
}

/// Whether a snapshot with a record in this directory needs the image. True if the directory cannot
/// be read.
fn is_used_by_snapshots(records: &Path, key: &str) -> bool {
    let Ok(entries) = fs::read_dir(records) else { return true };
    entries.flatten().any(|entry| read_record(&entry.path()).is_ok_and(|record| record.base == key))
}

/// Removes every image that is not in `wanted` and whose template no longer exists.
pub(crate) fn sweep(bases: &BaseImages, wanted: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(&bases.dir)? {
        let dir = entry?.path();
        let is_wanted =
            dir.file_name().is_some_and(|name| wanted.iter().any(|wanted| name == wanted.as_str()));
        if !is_wanted && !has_template(&dir) {
            fs::remove_dir_all(dir)?;
        }
    }
    Ok(())
}

fn has_template(dir: &Path) -> bool {
    let layers =
        fs::read(dir.join(LAYERS)).ok().and_then(|text| serde_json::from_slice::<Vec<PathBuf>>(&text).ok());
    dir.join(KEPT).exists() && layers.is_some_and(|layers| layers.iter().all(|layer| layer.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_layers_changes_the_key() {
        let layers = ["/a".into(), "/b".into()];
        let reversed = ["/b".into(), "/a".into()];
        assert_ne!(key_of(&layers), key_of(&reversed));
        assert_eq!(key_of(&layers), key_of(&layers.clone()));
    }

    #[test]
    fn images_without_a_template_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let bases = BaseImages::open(dir.path().to_owned());
        for (key, kept, layers) in [
            ("used", false, "[]"),
            ("template", true, "[]"),
            ("step", false, "[]"),
            ("gone", true, "[\"/nonexistent\"]"),
        ] {
            let dir = bases.dir_of(key);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(LAYERS), layers).unwrap();
            if kept {
                fs::write(dir.join(KEPT), "").unwrap();
            }
        }
        sweep(&bases, &["used".to_owned()]).unwrap();
        let left = |key: &str| bases.dir_of(key).exists();
        assert!(left("used") && left("template") && !left("step") && !left("gone"));
    }
}
