//! Disk limits: what is refused, and what still works after copies in both directions.
//! On an image, as limits are there by default only on it.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::common::{Disk, name};
use layers::{Volumes, VolumesBackend};

const MIB: u64 = 1 << 20;

/// Writes `mib` and brings them to disk.
fn write(path: &Path, mib: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let block = crate::common::noise();
    (0..mib).try_for_each(|_| file.write_all(&block))?;
    file.sync_all()
}

fn used(volumes: &Volumes, volume: &str) -> u64 {
    volumes.usage(&name(volume)).unwrap().used / MIB
}

fn is_full(result: io::Result<()>) -> bool {
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull), "{error}");
    true
}

#[test]
fn limits_hold_before_and_after_copies() {
    let disk = Disk::host();
    let volumes = disk.open(VolumesBackend::Loop);
    assert!(volumes.enforces_limits(), "{}", volumes.describe());
    let file = |volume: &str, file: &str| volumes.path(&name(volume)).join(file);

    volumes.create(&name("a"), Some(100)).unwrap();
    write(&file("a", "kept"), 40).unwrap();
    assert!((40..44).contains(&used(&volumes, "a")));
    assert!(is_full(write(&file("a", "more"), 80)), "a limit did not hold");
    fs::remove_file(file("a", "more")).unwrap();
    write(&file("a", "fits"), 10).unwrap();

    // The copy counts what it got, though the kernel does not charge it.
    volumes.copy(&name("a"), &name("snapshot"), true, None).unwrap();
    assert!((50..55).contains(&used(&volumes, "snapshot")), "{}", used(&volumes, "snapshot"));
    volumes.copy(&name("snapshot"), &name("fork"), false, Some(100)).unwrap();
    assert!((50..55).contains(&used(&volumes, "fork")));
    assert_eq!(volumes.usage(&name("fork")).unwrap().limit, Some(100 * MIB));
    assert!(is_full(write(&file("fork", "more"), 80)), "a copy has no limit");
    fs::remove_file(file("fork", "more")).unwrap();
    write(&file("fork", "fits-too"), 20).unwrap();

    // The source may replace what the copy keeps, again and again, with a copy each time.
    for round in 0..6 {
        write(&file("a", "kept"), 40).unwrap();
        volumes.copy(&name("a"), &name(&format!("snapshot-{round}")), true, None).unwrap();
    }
    assert!((50..60).contains(&used(&volumes, "a")), "{}", used(&volumes, "a"));
    assert!(is_full(write(&file("a", "more"), 80)), "a limit is gone after copies");

    volumes.set_limit(&name("a"), Some(400)).unwrap();
    write(&file("a", "more"), 200).unwrap();
    volumes.set_limit(&name("a"), None).unwrap();
    write(&file("a", "still-more"), 300).unwrap();
    assert_eq!(volumes.usage(&name("a")).unwrap().limit, None);

    // Below what is there already: nothing new, but nothing breaks.
    volumes.copy(&name("snapshot"), &name("tight"), false, Some(10)).unwrap();
    assert!(is_full(write(&file("tight", "new"), 5)));
    assert_eq!(fs::metadata(file("tight", "kept")).unwrap().len(), 40 * MIB);
    fs::remove_file(file("tight", "kept")).unwrap();
}
