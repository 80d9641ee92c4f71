//! Random histories of a tree, made into layers by umoci and mounted from ours: the tree must be the one that was made.
//! umoci writes each layer from what changed, so this is a check of whiteouts, replaced kinds and missing parents together.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use crate::common::{Layout, Store, describe, ignore, mode};
use oci::{ImportOptions, import_image};
use proptest::prelude::*;

/// One change to a tree; what cannot be done to it is left.
#[derive(Debug, Clone)]
enum Change {
    File(String, u8),
    Directory(String),
    Link(String, String),
    Remove(String),
    Mode(String, u32),
    Owner(String, u32),
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c")];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::File(path, byte)),
        3 => path().prop_map(Change::Directory),
        1 => (path(), "[a-c]{1}|nowhere").prop_map(|(path, target)| Change::Link(path, target)),
        3 => path().prop_map(Change::Remove),
        1 => (path(), prop_oneof![Just(0o700), Just(0o4755), Just(0o1777)]).prop_map(|(path, mode)| Change::Mode(path, mode)),
        1 => (path(), 0..70u32).prop_map(|(path, id)| Change::Owner(path, id)),
    ]
}

/// Whether the path can be reached without symlinks, so that nothing outside of the tree is touched.
fn is_plain(root: &Path, path: &str) -> bool {
    let above: Vec<&str> = path.split('/').collect();
    (1..above.len()).all(|count| {
        fs::symlink_metadata(root.join(above[..count].join("/"))).is_ok_and(|metadata| metadata.is_dir())
    })
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn apply(root: &Path, change: &Change) {
    let (Change::File(path, _)
    | Change::Directory(path)
    | Change::Link(path, _)
    | Change::Remove(path)
    | Change::Mode(path, _)
    | Change::Owner(path, _)) = change;
    if !is_plain(root, path) {
        return;
    }
    let full = root.join(path);
    let is_there = fs::symlink_metadata(&full).is_ok_and(|metadata| !metadata.is_symlink());
    match change {
        Change::File(_, byte) => {
            remove(&full);
            fs::write(&full, vec![*byte; usize::from(*byte)]).unwrap();
        }
        Change::Directory(_) if !is_there || !full.is_dir() => {
            remove(&full);
            fs::create_dir(&full).unwrap();
        }
        Change::Link(_, target) => {
            remove(&full);
            symlink(target, &full).unwrap();
        }
        Change::Remove(_) => remove(&full),
        Change::Mode(_, bits) if is_there => mode(&full, *bits),
        Change::Owner(_, id) if is_there => chown(&full, Some(*id), Some(*id + 1)).unwrap(),
        _ => {}
    }
}

/// Without times: umoci keeps no fractions, and a directory's own is not in a layer when only what is in it changed.
fn timeless(tree: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let strip = |text: String| {
        let mut words: Vec<&str> = text.split(' ').collect();
        words.remove(2);
        words.join(" ")
    };
    tree.into_iter().map(|(path, text)| (path, strip(text))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_tell_the_history(history in proptest::collection::vec(proptest::collection::vec(change(), 1..12), 2..5)) {
        let layout = Layout::new();
        for changes in &history {
            layout.layer(|root| changes.iter().for_each(|change| apply(root, change)));
        }
        let store = Store::new();
        let image = import_image(&store.store, Path::new(&layout.path()), None, &ImportOptions::default(), &ignore);
        let image = image.unwrap();
        store.is_tidy();
        let made = timeless(describe(&layout.dir.path().join("bundle/rootfs")));
        prop_assert_eq!(timeless(describe(&store.mount(&image.layers).path("."))), made);
    }
}
