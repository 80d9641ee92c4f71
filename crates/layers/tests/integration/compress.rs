//! Compression in place: a file's own extents get smaller, shared ones stay shared, the content stays the same.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::{Disk, name};
use layers::{TreesBackend, compress};
use rustix::fs::ioctl_ficlone;
use sys::{Extent, extents};

const MIB: u64 = 1 << 20;
const PIECE: usize = 1 << 20;

fn new(path: &std::path::Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

fn plain(file: &File) -> Vec<Extent> {
    file.sync_all().unwrap();
    extents(file.as_fd(), 0).unwrap().into_iter().filter(|extent| extent.is_plain).collect()
}

#[test]
fn own_extents_are_compressed_and_shared_ones_kept() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Loop);
    trees.create(&name("a"), None).unwrap();
    let dir = trees.path(&name("a"));
    let (origin, image) = (new(&dir.join("origin")), new(&dir.join("image")));
    origin.set_len(64 * MIB).unwrap();
    let text: Vec<u8> = b"over and over ".iter().copied().cycle().take(PIECE).collect();
    origin.write_all_at(&text, 8 * MIB).unwrap();
    origin.sync_all().unwrap();
    ioctl_ficlone(&image, &origin).unwrap();
    // A page alone, and more than one step.
    image.write_all_at(&text[..4096], 2 * MIB).unwrap();
    (20..33).for_each(|at| image.write_all_at(&text, at * MIB).unwrap());
    assert!(plain(&image).iter().map(|extent| extent.length).sum::<u64>() >= 13 * MIB);
    let before = std::fs::read(dir.join("image")).unwrap();

    let mut steps = 0;
    let ends_early = |took: Duration| {
        assert!(!took.is_zero());
        false
    };
    compress(&image, ends_early).unwrap();
    assert!(plain(&image).len() > 1, "the file was compressed in one step");
    compress(&image, |_| {
        steps += 1;
        true
    })
    .unwrap();
    assert!(steps >= 3, "{steps}");
    assert!(std::fs::read(dir.join("image")).unwrap() == before);
    let left: Vec<Extent> = plain(&image);
    assert!(matches!(left[..], [Extent { start, length: 4096, .. }] if start == 2 * MIB), "{left:?}");
    assert_eq!(plain(&origin), [], "it is shared as before");
    compress(&image, |_| panic!("it is done")).unwrap();
    assert!(std::fs::read(dir.join("image")).unwrap() == before);
}

#[test]
fn other_file_systems_are_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let file = new(&place.path().join("file"));
    file.write_all_at(&[7; 4096], MIB).unwrap();
    compress(&file, |_| panic!("nothing to wait for")).unwrap();
}
