//! Writable trees on every backend: all keep the same promises.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::common::{Disk, name};
use layers::{LayerError, Trees, TreesBackend, TreesConfig};
use sys::btrfs::{Quota, create_subvolume};

const MIB: u64 = 1 << 20;

fn promises(trees: &Trees) {
    let (a, b, c) = (name("a"), name("ready-1"), name("c"));
    trees.create(&b, Some(64)).unwrap();
    assert!(matches!(trees.create(&b, None), Err(LayerError::TreeTaken(_))));
    assert_eq!(fs::read_dir(trees.path(&b)).unwrap().count(), 0);
    trees.rename(&b, &a).unwrap();
    assert!(matches!(trees.rename(&b, &a), Err(LayerError::NoTree(_))));
    assert_eq!(trees.list().unwrap(), std::slice::from_ref(&a));

    fs::create_dir(trees.path(&a).join("upper")).unwrap();
    let file = trees.path(&a).join("upper/file");
    fs::write(&file, "before").unwrap();
    trees.copy(&a, &c, true, None).unwrap();
    fs::write(&file, "after").unwrap();
    assert_eq!(fs::read_to_string(trees.path(&c).join("upper/file")).unwrap(), "before");
    trees.copy(&c, &b, false, Some(64)).unwrap();
    fs::write(trees.path(&b).join("upper/file"), "fork").unwrap();
    assert_eq!(fs::read_to_string(trees.path(&c).join("upper/file")).unwrap(), "before");
    assert!(matches!(trees.copy(&a, &c, false, None), Err(LayerError::TreeTaken(_))));
    assert!(matches!(trees.copy(&name("none"), &name("d"), false, None), Err(LayerError::NoTree(_))));
    assert!(matches!(trees.rename(&a, &c), Err(LayerError::TreeTaken(_))));

    for tree in [&a, &b, &c] {
        trees.discard(tree).unwrap();
        assert!(!trees.path(tree).exists());
    }
    trees.discard(&a).unwrap();
    assert!(trees.list().unwrap().is_empty());
    assert!(matches!(trees.usage(&a), Err(LayerError::NoTree(_))));
}

/// Creates every kind of file that overlayfs and programs leave in an upper directory.
fn fill(tree: &Path) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
    fs::create_dir_all(tree.join("dir/deep")).unwrap();
    fs::write(tree.join("dir/file"), "content").unwrap();
    fs::hard_link(tree.join("dir/file"), tree.join("dir/deep/same")).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    fs::write(tree.join("suid"), "x").unwrap();
    std::os::unix::fs::chown(tree.join("suid"), Some(1000), Some(1001)).unwrap();
    std::os::unix::fs::lchown(tree.join("link"), Some(5), Some(6)).unwrap();
    rustix::fs::chmod(tree.join("suid"), Mode::from_raw_mode(0o6755)).unwrap();
    let none = Mode::from_raw_mode(0);
    mknodat(CWD, tree.join("whiteout"), FileType::CharacterDevice, none, makedev(0, 0)).unwrap();
    mknodat(CWD, tree.join("fifo"), FileType::Fifo, none, 0).unwrap();
    mknodat(CWD, tree.join("socket"), FileType::Socket, none, 0).unwrap();
    lsetxattr(tree.join("dir"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    lsetxattr(tree.join("link"), "trusted.overlay.origin", b"\0\x01", XattrFlags::empty()).unwrap();
    lsetxattr(tree.join("dir/file"), "user.empty", b"", XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    lsetxattr(tree.join("suid"), "security.capability", capability, XattrFlags::empty()).unwrap();
    let mut holes = File::create(tree.join("holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&holes, b"middle", 32 << 20).unwrap();
    holes.flush().unwrap();
    for odd in ["dir", "link", "fifo"] {
        let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 7 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, tree.join(odd), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    rustix::fs::chmod(tree, Mode::from_raw_mode(0o711)).unwrap();
}

fn copies_are_faithful(trees: &Trees) {
    let (from, to) = (name("from"), name("to"));
    trees.create(&from, None).unwrap();
    fill(&trees.path(&from).join("upper"));
    trees.copy(&from, &to, false, None).unwrap();
    let [original, copy] = [&from, &to].map(|name| crate::common::describe(&trees.path(name).join("upper")));
    assert!(original.contains("trusted.overlay.opaque") && original.contains("whiteout c"));
    pretty(&original, &copy);
    let inode = |path: &str| fs::metadata(trees.path(&to).join(path)).unwrap().ino();
    assert_eq!(inode("upper/dir/file"), inode("upper/dir/deep/same"));
    let holes = fs::metadata(trees.path(&to).join("upper/holes")).unwrap();
    assert!(holes.blocks() * 512 < 1 << 20, "holes were filled");
    let content = fs::read(trees.path(&to).join("upper/holes")).unwrap();
    assert_eq!(&content[32 << 20..][..6], b"middle");
    [&from, &to].into_iter().for_each(|name| trees.discard(name).unwrap());
}

fn pretty(left: &str, right: &str) {
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right);
    }
    assert_eq!(left.lines().count(), right.lines().count());
}

fn deep_trees_are_copied(trees: &Trees) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let (from, to) = (name("deep"), name("deep-copy"));
    trees.create(&from, None).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = openat(CWD, trees.path(&from), flags, Mode::empty()).unwrap();
    for _ in 0..5000 {
        mkdirat(&dir, "d", Mode::from_raw_mode(0)).unwrap();
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    openat(&dir, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap();
    trees.copy(&from, &to, false, None).unwrap();
    let mut dir = openat(CWD, trees.path(&to), flags, Mode::empty()).unwrap();
    for _ in 0..5000 {
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    openat(&dir, "bottom", OFlags::RDONLY, Mode::empty()).unwrap();
    [&from, &to].into_iter().for_each(|name| trees.discard(name).unwrap());
}

fn everything(trees: &Trees) {
    promises(trees);
    copies_are_faithful(trees);
    deep_trees_are_copied(trees);
}

#[test]
fn in_an_image() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(trees.kind(), TreesBackend::Loop, "{}", trees.describe());
    everything(&trees);
    assert!(disk.image_device().is_some());
    drop(trees);
    assert_eq!(disk.image_device(), None, "the loop device is still there");
}

#[test]
fn in_btrfs() {
    let disk = Disk::fresh("btrfs", 512);
    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(trees.kind(), TreesBackend::Btrfs);
    assert!(!trees.enforces_limits() && trees.describe().contains("btrfs quota enable"));
    everything(&trees);
}

#[test]
fn by_reflink() {
    let disk = Disk::fresh("xfs", 512);
    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(trees.kind(), TreesBackend::Reflink);
    everything(&trees);
}

#[test]
fn by_copying() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Copy);
    everything(&trees);
}

#[test]
fn foreign_directories_and_subvolumes_are_discarded() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Loop);
    let (outer, plain) = (name("outer"), name("plain"));
    trees.create(&outer, None).unwrap();
    let mut dir = File::open(trees.path(&outer)).unwrap();
    for level in 0..30 {
        create_subvolume(dir.as_fd(), "inner", Quota::default()).unwrap();
        create_subvolume(dir.as_fd(), "side", Quota { limit: Some(MIB), group: None }).unwrap();
        let path = trees.path(&outer).join("inner/".repeat(level + 1));
        fs::write(path.join("file"), "x").unwrap();
        dir = File::open(path).unwrap();
    }
    drop(dir);
    trees.discard(&outer).unwrap();
    assert!(!trees.path(&outer).exists());
    fs::create_dir_all(trees.path(&plain).join("not/a/subvolume")).unwrap();
    trees.discard(&plain).unwrap();
    assert!(trees.list().unwrap().is_empty());
}

#[test]
fn incomplete_copies_are_removed_at_the_next_start() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Copy);
    trees.create(&name("a"), None).unwrap();
    drop(trees);
    let half = disk.dir.join("trees/.making/b-0123/tree/upper");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("file"), "x").unwrap();
    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(trees.kind(), TreesBackend::Copy, "existing trees decide the backend");
    assert_eq!(trees.list().unwrap(), [name("a")]);
    drop(trees);
    for hidden in [".making", ".trash"] {
        assert_eq!(fs::read_dir(disk.dir.join("volumes").join(hidden)).unwrap().count(), 0, "{hidden}");
    }
}

#[test]
fn existing_trees_forbid_another_backend() {
    let disk = Disk::host();
    drop(disk.open(TreesBackend::Loop));
    let refused = Trees::open(&disk.dir, config(TreesBackend::Copy)).unwrap_err().to_string();
    assert!(refused.contains("volumes.btrfs holds trees"), "{refused}");
    let other = Disk::host();
    let trees = other.open(TreesBackend::Copy);
    trees.create(&name("a"), None).unwrap();
    let refused = Trees::open(&other.dir, config(TreesBackend::Loop)).unwrap_err().to_string();
    assert!(refused.contains("holds trees"), "{refused}");
    let refused = Trees::open(&other.dir, config(TreesBackend::Btrfs)).unwrap_err().to_string();
    assert!(refused.contains("choose loop"), "{refused}");
}

#[test]
fn an_image_that_cannot_be_attached_is_removed() {
    let disk = Disk::host();
    // As in a container that was given no loop devices.
    crate::common::hide_from_this_thread("/dev/loop-control");
    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(trees.kind(), TreesBackend::Copy);
    assert!(trees.describe().contains("modprobe loop"), "{}", trees.describe());
    assert!(!disk.dir.join("volumes.btrfs").exists());
    let refused = Trees::open(&disk.dir.join("other"), config(TreesBackend::Loop)).unwrap_err();
    assert!(refused.to_string().contains("modprobe loop"), "{refused}");
    assert!(!disk.dir.join("other/volumes.btrfs").exists());

    trees.create(&name("a"), None).unwrap();
    drop(trees);
    crate::common::show_again("/dev/loop-control");
    let trees = disk.open(TreesBackend::Auto);
    assert!(trees.describe().contains("from before"), "{}", trees.describe());
    trees.discard(&name("a")).unwrap();
    drop(trees);
    assert_eq!(disk.open(TreesBackend::Auto).kind(), TreesBackend::Loop);
}

#[test]
fn an_image_grows_when_its_disk_did() {
    let disk = Disk::host();
    let open = |gib: u64| {
        let config = TreesConfig { backend: TreesBackend::Loop, image_size: Some(gib << 30) };
        Trees::open(&disk.dir, config).unwrap()
    };
    let size = |trees: &Trees| {
        trees.create(&name("a"), None).unwrap();
        let disk = rustix::fs::statvfs(trees.path(&name("a"))).unwrap();
        trees.discard(&name("a")).unwrap();
        (disk.f_blocks * disk.f_frsize) >> 30
    };
    assert_eq!(size(&open(2)), 2);
    assert_eq!(size(&open(5)), 5);
    assert_eq!(size(&open(3)), 5);
}

fn config(backend: TreesBackend) -> TreesConfig {
    TreesConfig { backend, image_size: Some(4 << 30) }
}
