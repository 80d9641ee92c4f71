//! Images of templates' files: the merged layers as one read-only disk that all sandboxes of a template share.
//! They are large and can be made anew, so those that only a build's step needed go with its sandbox; the others stay for as long as
//! their layers do. Whoever uses one holds it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::{EngineError, TemplateImage};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::host::Host;
use crate::snapshot::read_record;
use crate::vm::command_line::BASE_IMAGE_FILE;

/// The layers it was made of, as JSON.
const LAYERS: &str = "layers.json";
/// There when more sandboxes of the template are to be expected.
const KEPT: &str = "kept";

/// An image in use.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    /// Its name: equal layers in equal order, equal name.
    pub(crate) key: String,
    _hold: Arc<()>,
}

/// The images of this server.
#[derive(Debug)]
pub(crate) struct BaseImages {
    dir: PathBuf,
    held: Mutex<HashMap<String, Weak<()>>>,
}

impl BaseImages {
    pub(crate) fn open(dir: PathBuf) -> Self {
        Self { dir, held: Mutex::default() }
    }

    /// The directory of the image with this name.
    pub(crate) fn dir_of(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Holds an image, there or not.
    pub(crate) fn hold(&self, key: &str) -> BaseImage {
        let mut held = self.held();
        let hold = held.get(key).and_then(Weak::upgrade).unwrap_or_default();
        held.insert(key.to_owned(), Arc::downgrade(&hold));
        BaseImage { key: key.to_owned(), _hold: hold }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Weak<()>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Makes the image of a template's files unless it is there.
pub(crate) async fn prepare(
    host: &Arc<Host>,
    template: &TemplateImage,
    recurring: bool,
) -> Result<BaseImage, EngineError> {
    if let Some(missing) = template.layers.iter().find(|layer| !layer.is_dir()) {
        return Err(EngineError::Template(format!("layer {} is missing", missing.display())));
    }
    let base = host.base_images.hold(&key_of(&template.layers));
    let dir = host.base_images.dir_of(&base.key);
    if !dir.join(BASE_IMAGE_FILE).exists() {
        let lock = host.warm_starts.lock(&base.key);
        let _one_at_a_time = lock.lock().await;
        let (dir, layers) = (dir.clone(), template.layers.clone());
        let made = tokio::task::spawn_blocking(move || make(&dir, &layers)).await;
        made.map_err(|_| EngineError::Died("making a template's image was interrupted".into()))??;
    }
    if recurring {
        fs::write(dir.join(KEPT), "").map_err(EngineError::kernel("keep a template's image"))?;
    }
    Ok(base)
}

fn make(dir: &Path, layers: &[PathBuf]) -> Result<(), EngineError> {
    let image = dir.join(BASE_IMAGE_FILE);
    if image.exists() {
        return Ok(());
    }
    let note = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join(LAYERS), serde_json::to_vec(layers)?)
    };
    note().map_err(EngineError::kernel("make a directory for a template's image"))?;
    guest::disk_images::build_base(layers, &image)
        .map_err(|error| EngineError::Template(error.to_string()))?;
    // Every machine's user reads it.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444))
        .map_err(EngineError::kernel("open a template's image to machines"))
}

/// Lets go of an image; it is removed if nobody needs it any more. Blocks.
pub(crate) fn release(host: &Host, base: BaseImage) {
    let key = base.key.clone();
    drop(base);
    let mut held = host.base_images.held();
    if held.get(&key).is_some_and(|held| held.strong_count() > 0) {
        return;
    }
    held.remove(&key);
    let dir = host.base_images.dir_of(&key);
    let states = [host.snapshots.as_path(), host.warm_starts.dir()];
    if dir.join(KEPT).exists() || states.iter().any(|states| is_named(states, &key)) {
        return;
    }
    // Nobody can begin to hold it before it is gone.
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(key, %error, "the image of a build's step could not be removed");
        }
        _ => {}
    }
}

/// Whether a state in this directory belongs to the image.
fn is_named(states: &Path, key: &str) -> bool {
    let Ok(entries) = fs::read_dir(states) else { return true };
    entries.flatten().any(|entry| read_record(&entry.path()).is_ok_and(|record| record.base == key))
}

/// Removes every image that is not in `wanted` and whose template is gone.
pub(crate) fn sweep(bases: &BaseImages, wanted: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(&bases.dir)? {
        let dir = entry?.path();
        let is_wanted =
            dir.file_name().is_some_and(|name| wanted.iter().any(|wanted| name == wanted.as_str()));
        if !is_wanted && !is_of_a_template(&dir) {
            fs::remove_dir_all(dir)?;
        }
    }
    Ok(())
}

fn is_of_a_template(dir: &Path) -> bool {
    let layers =
        fs::read(dir.join(LAYERS)).ok().and_then(|text| serde_json::from_slice::<Vec<PathBuf>>(&text).ok());
    dir.join(KEPT).exists() && layers.is_some_and(|layers| layers.iter().all(|layer| layer.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_makes_another_template() {
        let layers = ["/a".into(), "/b".into()];
        let turned = ["/b".into(), "/a".into()];
        assert_ne!(key_of(&layers), key_of(&turned));
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
