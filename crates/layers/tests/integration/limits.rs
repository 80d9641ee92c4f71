//! Disk limits of trees, before and after copies from and to them.
//! On an image, the only backend with limits by default.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::common::{Disk, name};
use layers::{Trees, TreesBackend};

const MIB: u64 = 1 << 20;

/// Writes `mib` MiB and syncs them.
fn write(path: &Path, mib: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let block = crate::common::noise();
    (0..mib).try_for_each(|_| file.write_all(&block))?;
    file.sync_all()
}

fn used(trees: &Trees, tree: &str) -> u64 {
    trees.usage(&name(tree)).unwrap().used / MIB
}

fn is_full(result: io::Result<()>) -> bool {
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull), "{error}");
    true
}

#[test]
fn limits_hold_before_and_after_copies() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Loop);
    assert!(trees.enforces_limits(), "{}", trees.describe());
    let file = |tree: &str, file: &str| trees.path(&name(tree)).join(file);

    trees.create(&name("a"), Some(100)).unwrap();
    write(&file("a", "kept"), 40).unwrap();
    assert!((40..44).contains(&used(&trees, "a")));
    assert!(is_full(write(&file("a", "more"), 80)), "a limit did not hold");
    fs::remove_file(file("a", "more")).unwrap();
    write(&file("a", "fits"), 10).unwrap();

    // The copy's size includes what it shares, which the kernel does not charge it for.
    trees.copy(&name("a"), &name("snapshot"), true, None).unwrap();
    assert!((50..55).contains(&used(&trees, "snapshot")), "{}", used(&trees, "snapshot"));
    trees.copy(&name("snapshot"), &name("fork"), false, Some(100)).unwrap();
    assert!((50..55).contains(&used(&trees, "fork")));
    assert_eq!(trees.usage(&name("fork")).unwrap().limit, Some(100 * MIB));
    assert!(is_full(write(&file("fork", "more"), 80)), "a copy has no limit");
    fs::remove_file(file("fork", "more")).unwrap();
    write(&file("fork", "fits-too"), 20).unwrap();

    // The source may replace what the copy keeps, again and again, with a copy each time.
    for round in 0..6 {
        write(&file("a", "kept"), 40).unwrap();
        trees.copy(&name("a"), &name(&format!("snapshot-{round}")), true, None).unwrap();
    }
    assert!((50..60).contains(&used(&trees, "a")), "{}", used(&trees, "a"));
    assert!(is_full(write(&file("a", "more"), 80)), "a limit is gone after copies");

    trees.set_limit(&name("a"), Some(400)).unwrap();
    write(&file("a", "more"), 200).unwrap();
    trees.set_limit(&name("a"), None).unwrap();
    write(&file("a", "still-more"), 300).unwrap();
    assert_eq!(trees.usage(&name("a")).unwrap().limit, None);

    // A limit below the current size: nothing can be written, but existing files stay.
    trees.copy(&name("snapshot"), &name("tight"), false, Some(10)).unwrap();
    assert!(is_full(write(&file("tight", "new"), 5)));
    assert_eq!(fs::metadata(file("tight", "kept")).unwrap().len(), 40 * MIB);
    fs::remove_file(file("tight", "kept")).unwrap();
}
