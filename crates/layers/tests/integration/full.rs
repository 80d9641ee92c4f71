//! A host disk that fills up under an image.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;

use crate::common::{Disk, name};
use layers::{LayerError, Trees, TreesBackend};

fn fill(trees: &Trees, tree: &str) -> (u64, std::io::Error) {
    let path = trees.path(&name(tree)).join("fill");
    let mut file = File::create(path).unwrap();
    let block = crate::common::noise();
    for mib in 0.. {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return (mib, error);
        }
    }
    unreachable!()
}

#[test]
fn a_full_host_disk_fails_writes_without_loss() {
    let disk = Disk::fresh("ext4", 700);
    let trees = disk.open(TreesBackend::Loop);
    let [safe, greedy, saved] = ["safe", "greedy", "saved"].map(name);
    trees.create(&safe, Some(100)).unwrap();
    fs::write(trees.path(&safe).join("file"), "kept").unwrap();
    trees.create(&greedy, None).unwrap();
    let (written, error) = fill(&trees, "greedy");
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
    // The exact amount depends on when the limit was updated last.
    assert!(written > 200, "only {written} MiB fit");
    let host = rustix::fs::statvfs(&disk.dir).unwrap();
    let left = (host.f_bavail * host.f_frsize) >> 20;
    assert!(left > 64, "the host has {left} MiB left, {written} MiB were written");

    // No other tree can be written now, but trees can be copied and discarded.
    assert!(fs::write(trees.path(&safe).join("new"), [1u8; 1 << 20]).is_err());
    trees.copy(&safe, &saved, true, None).unwrap();
    let refused = trees.copy(&saved, &name("more"), false, Some(100));
    assert!(matches!(refused, Err(LayerError::Full(_))), "{refused:?}");
    trees.discard(&greedy).unwrap();
    drop(trees);
    let trees = disk.open(TreesBackend::Auto);
    let mut left = trees.list().unwrap();
    left.sort();
    assert_eq!(left, [safe.clone(), saved.clone()]);
    for tree in [&safe, &saved] {
        assert_eq!(fs::read_to_string(trees.path(tree).join("file")).unwrap(), "kept");
    }
}
