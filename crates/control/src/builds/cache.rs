//! What steps came to before: a key over everything that shapes a step leads to the layers and the context after it.
//! One small file an entry, in its team's directory: no team profits from, or is fooled by, another's builds.
//! An entry whose layers are gone is no entry. Entries that nobody used for long are forgotten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ids::TeamId;
use layers::LayerStore;
use serde::{Deserialize, Serialize};
use template::steps::Context;

/// Where a build stands between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Digests, uppermost first.
    pub(crate) layers: Vec<String>,
    pub(crate) context: Context,
}

/// A team's entries.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn of(root: &Path, team: TeamId) -> Self {
        Self { dir: root.join(team.to_string()) }
    }

    /// What is known under a key, if its layers are still there.
    pub(crate) fn get(&self, key: &str, store: &LayerStore) -> Option<Progress> {
        let path = self.dir.join(key);
        let found: Progress = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let complete =
            found.layers.iter().all(|digest| digest.parse().is_ok_and(|digest| store.contains(&digest)));
        if !complete {
            return None;
        }
        // Its age is counted from its last use.
        let _ = fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(found)
    }

    /// Keeps an entry, whole or not at all.
    pub(crate) fn put(&self, key: &str, progress: &Progress) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let new = self.dir.join(format!("{key}.{}.new", ids::random_hex::<4>()));
        fs::write(&new, serde_json::to_vec(progress)?)?;
        fs::rename(new, self.dir.join(key))
    }
}

/// Every layer that an entry of any team refers to.
pub(crate) fn layers(root: &Path) -> Vec<String> {
    let teams = fs::read_dir(root).into_iter().flatten().flatten();
    let entries = teams.filter_map(|team| fs::read_dir(team.path()).ok()).flatten().flatten();
    let progress =
        entries.filter_map(|entry| serde_json::from_slice::<Progress>(&fs::read(entry.path()).ok()?).ok());
    progress.flat_map(|progress| progress.layers).collect()
}

/// Removes the entries of all teams that nobody has used for so long.
pub(crate) fn forget(root: &Path, unused_for: Duration) {
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
    fn an_entry_is_good_while_its_layers_are_there() {
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
        forget(&dir.path().join("cache"), Duration::ZERO);
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 0);
    }
}
