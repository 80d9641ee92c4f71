//! [`Cache`]: results of build steps. A cache key covers all inputs of a step; its result is the layers and the context after the step.
//! Each result is a small file in its team's directory, so builds of one team cannot influence builds of another team.
//! A result is ignored if one of its layers does not exist any more, and removed if it has not been used for long.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ids::TeamId;
use layers::LayerStore;
use serde::{Deserialize, Serialize};
use template::steps::Context;

/// State of a build between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Layer digests, uppermost first.
    pub(crate) layers: Vec<String>,
    /// User, directory and variables for the next step.
    pub(crate) context: Context,
}

/// Results of one team's steps.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn of(root: &Path, team: TeamId) -> Self {
        Self { dir: root.join(team.to_string()) }
    }

    /// Returns the result with this key if its layers exist.
    pub(crate) fn get(&self, key: &str, store: &LayerStore) -> Option<Progress> {
        let path = self.dir.join(key);
        let found: Progress = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let complete =
            found.layers.iter().all(|digest| digest.parse().is_ok_and(|digest| store.contains(&digest)));
        if !complete {
            return None;
        }
        // The modification time is the time of the last use.
        let _ = fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(found)
    }

    /// Stores a result; a crash leaves all of it or nothing.
    pub(crate) fn put(&self, key: &str, progress: &Progress) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        fs_atomic::write_json(&self.dir.join(key), progress, fs_atomic::Options::default())
    }
}

/// Returns every layer that a result of any team refers to.
pub(crate) fn layers(root: &Path) -> Vec<String> {
    let teams = fs::read_dir(root).into_iter().flatten().flatten();
    let entries = teams.filter_map(|team| fs::read_dir(team.path()).ok()).flatten().flatten();
    let progress =
        entries.filter_map(|entry| serde_json::from_slice::<Progress>(&fs::read(entry.path()).ok()?).ok());
    progress.flat_map(|progress| progress.layers).collect()
}

/// Removes files in the teams' directories below `root` that have not been used for this long.
pub(crate) fn remove_unused(root: &Path, unused_for: Duration) {
    let Some(before) = SystemTime::now().checked_sub(unused_for) else { return };
    let teams = fs::read_dir(root).into_iter().flatten().flatten();
    for entry in teams.filter_map(|team| fs::read_dir(team.path()).ok()).flatten().flatten() {
        let is_old = entry.metadata().and_then(|data| data.modified()).is_ok_and(|at| at < before);
        if is_old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_result_is_found_while_its_layers_exist() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(&dir.path().join("layers")).unwrap();
        let staging = store.stage().unwrap();
        fs::create_dir(staging.path()).unwrap();
        let layer = store.add(&staging).unwrap();
        let cache = Cache::of(&dir.path().join("cache"), TeamId::generate());
        let context = Context { user: "user".into(), workdir: None, env: BTreeMap::new() };
        let progress = Progress { layers: vec![layer.to_string()], context };
        cache.put("key", &progress).unwrap();
        assert_eq!(cache.get("key", &store), Some(progress));
        assert_eq!(cache.get("other", &store), None);
        let stranger = Cache::of(&dir.path().join("cache"), TeamId::generate());
        assert_eq!(stranger.get("key", &store), None, "another team's entry was found");
        fs::remove_dir(store.path(&layer)).unwrap();
        assert_eq!(cache.get("key", &store), None);
        remove_unused(&dir.path().join("cache"), Duration::ZERO);
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 0);
    }
}
