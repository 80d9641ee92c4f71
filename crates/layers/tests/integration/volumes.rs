//! Volumes on every kind of disk: the same promises, whatever is below.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::common::{Disk, name};
use layers::{LayerError, Volumes, VolumesBackend, VolumesConfig};
use sys::btrfs::{Quota, create_subvolume};

const MIB: u64 = 1 << 20;

fn promises(volumes: &Volumes) {
    let (a, b, c) = (name("a"), name("ready-1"), name("c"));
    volumes.create(&b, Some(64)).unwrap();
    assert!(matches!(volumes.create(&b, None), Err(LayerError::VolumeTaken(_))));
    assert_eq!(fs::read_dir(volumes.path(&b)).unwrap().count(), 0);
    volumes.rename(&b, &a).unwrap();
    assert!(matches!(volumes.rename(&b, &a), Err(LayerError::NoVolume(_))));
    assert_eq!(volumes.list().unwrap(), std::slice::from_ref(&a));

    fs::create_dir(volumes.path(&a).join("upper")).unwrap();
    let file = volumes.path(&a).join("upper/file");
    fs::write(&file, "before").unwrap();
    volumes.copy(&a, &c, true, None).unwrap();
    fs::write(&file, "after").unwrap();
    assert_eq!(fs::read_to_string(volumes.path(&c).join("upper/file")).unwrap(), "before");
    volumes.copy(&c, &b, false, Some(64)).unwrap();
    fs::write(volumes.path(&b).join("upper/file"), "fork").unwrap();
    assert_eq!(fs::read_to_string(volumes.path(&c).join("upper/file")).unwrap(), "before");
    assert!(matches!(volumes.copy(&a, &c, false, None), Err(LayerError::VolumeTaken(_))));
    assert!(matches!(volumes.copy(&name("none"), &name("d"), false, None), Err(LayerError::NoVolume(_))));
    assert!(matches!(volumes.rename(&a, &c), Err(LayerError::VolumeTaken(_))));

    for volume in [&a, &b, &c] {
        volumes.discard(volume).unwrap();
        assert!(!volumes.path(volume).exists());
    }
    volumes.discard(&a).unwrap();
    assert!(volumes.list().unwrap().is_empty());
    assert!(matches!(volumes.usage(&a), Err(LayerError::NoVolume(_))));
}

/// Of every kind that overlayfs and people leave in an upper.
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

fn copies_are_faithful(volumes: &Volumes) {
    let (from, to) = (name("from"), name("to"));
    volumes.create(&from, None).unwrap();
    fill(&volumes.path(&from).join("upper"));
    volumes.copy(&from, &to, false, None).unwrap();
    let [original, copy] =
        [&from, &to].map(|name| crate::common::describe(&volumes.path(name).join("upper")));
    assert!(original.contains("trusted.overlay.opaque") && original.contains("whiteout c"));
    pretty(&original, &copy);
    let inode = |path: &str| fs::metadata(volumes.path(&to).join(path)).unwrap().ino();
    assert_eq!(inode("upper/dir/file"), inode("upper/dir/deep/same"));
    let holes = fs::metadata(volumes.path(&to).join("upper/holes")).unwrap();
    assert!(holes.blocks() * 512 < 1 << 20, "holes were filled");
    let content = fs::read(volumes.path(&to).join("upper/holes")).unwrap();
    assert_eq!(&content[32 << 20..][..6], b"middle");
    [&from, &to].into_iter().for_each(|name| volumes.discard(name).unwrap());
}

fn pretty(left: &str, right: &str) {
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right);
    }
    assert_eq!(left.lines().count(), right.lines().count());
}

fn deep_trees_are_copied(volumes: &Volumes) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let (from, to) = (name("deep"), name("deep-copy"));
    volumes.create(&from, None).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = openat(CWD, volumes.path(&from), flags, Mode::empty()).unwrap();
    for _ in 0..5000 {
        mkdirat(&dir, "d", Mode::from_raw_mode(0)).unwrap();
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    openat(&dir, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap();
    volumes.copy(&from, &to, false, None).unwrap();
    let mut dir = openat(CWD, volumes.path(&to), flags, Mode::empty()).unwrap();
    for _ in 0..5000 {
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    openat(&dir, "bottom", OFlags::RDONLY, Mode::empty()).unwrap();
    [&from, &to].into_iter().for_each(|name| volumes.discard(name).unwrap());
}

fn everything(volumes: &Volumes) {
    promises(volumes);
    copies_are_faithful(volumes);
    deep_trees_are_copied(volumes);
}

#[test]
fn in_an_image() {
    let disk = Disk::host();
    let volumes = disk.open(VolumesBackend::Auto);
    assert_eq!(volumes.kind(), VolumesBackend::Loop, "{}", volumes.describe());
    everything(&volumes);
    assert!(disk.image_device().is_some());
    drop(volumes);
    assert_eq!(disk.image_device(), None, "the loop device is still there");
}

#[test]
fn in_btrfs() {
    let disk = Disk::fresh("btrfs", 512);
    let volumes = disk.open(VolumesBackend::Auto);
    assert_eq!(volumes.kind(), VolumesBackend::Btrfs);
    assert!(!volumes.enforces_limits() && volumes.describe().contains("btrfs quota enable"));
    everything(&volumes);
}

#[test]
fn by_reflink() {
    let disk = Disk::fresh("xfs", 512);
    let volumes = disk.open(VolumesBackend::Auto);
    assert_eq!(volumes.kind(), VolumesBackend::Reflink);
    everything(&volumes);
}

#[test]
fn by_copying() {
    let disk = Disk::host();
    let volumes = disk.open(VolumesBackend::Copy);
    everything(&volumes);
}

#[test]
fn what_people_put_in_goes_too() {
    let disk = Disk::host();
    let volumes = disk.open(VolumesBackend::Loop);
    let (outer, plain) = (name("outer"), name("plain"));
    volumes.create(&outer, None).unwrap();
    let mut dir = File::open(volumes.path(&outer)).unwrap();
    for level in 0..30 {
        create_subvolume(dir.as_fd(), "inner", Quota::default()).unwrap();
        create_subvolume(dir.as_fd(), "side", Quota { limit: Some(MIB), group: None }).unwrap();
        let path = volumes.path(&outer).join("inner/".repeat(level + 1));
        fs::write(path.join("file"), "x").unwrap();
        dir = File::open(path).unwrap();
    }
    drop(dir);
    volumes.discard(&outer).unwrap();
    assert!(!volumes.path(&outer).exists());
    fs::create_dir_all(volumes.path(&plain).join("not/a/subvolume")).unwrap();
    volumes.discard(&plain).unwrap();
    assert!(volumes.list().unwrap().is_empty());
}

#[test]
fn half_a_copy_is_removed_at_the_next_start() {
    let disk = Disk::host();
    let volumes = disk.open(VolumesBackend::Copy);
    volumes.create(&name("a"), None).unwrap();
    drop(volumes);
    let half = disk.dir.join("volumes/.making/b-0123/tree/upper");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("file"), "x").unwrap();
    let volumes = disk.open(VolumesBackend::Auto);
    assert_eq!(volumes.kind(), VolumesBackend::Copy, "volumes that are there decide");
    assert_eq!(volumes.list().unwrap(), [name("a")]);
    drop(volumes);
    for hidden in [".making", ".trash"] {
        assert_eq!(fs::read_dir(disk.dir.join("volumes").join(hidden)).unwrap().count(), 0, "{hidden}");
    }
}

#[test]
fn volumes_are_never_left_behind_by_a_change_of_mind() {
    let disk = Disk::host();
    drop(disk.open(VolumesBackend::Loop));
    let refused = Volumes::open(&disk.dir, config(VolumesBackend::Copy)).unwrap_err().to_string();
    assert!(refused.contains("volumes.btrfs holds volumes"), "{refused}");
    let other = Disk::host();
    let volumes = other.open(VolumesBackend::Copy);
    volumes.create(&name("a"), None).unwrap();
    let refused = Volumes::open(&other.dir, config(VolumesBackend::Loop)).unwrap_err().to_string();
    assert!(refused.contains("holds volumes"), "{refused}");
    let refused = Volumes::open(&other.dir, config(VolumesBackend::Btrfs)).unwrap_err().to_string();
    assert!(refused.contains("choose loop"), "{refused}");
}

#[test]
fn what_cannot_be_used_is_not_left_in_the_way() {
    let disk = Disk::host();
    // As in a container that was given no loop devices.
    crate::common::hide_from_this_thread("/dev/loop-control");
    let volumes = disk.open(VolumesBackend::Auto);
    assert_eq!(volumes.kind(), VolumesBackend::Copy);
    assert!(volumes.describe().contains("modprobe loop"), "{}", volumes.describe());
    assert!(!disk.dir.join("volumes.btrfs").exists());
    let refused = Volumes::open(&disk.dir.join("other"), config(VolumesBackend::Loop)).unwrap_err();
    assert!(refused.to_string().contains("modprobe loop"), "{refused}");
    assert!(!disk.dir.join("other/volumes.btrfs").exists());

    volumes.create(&name("a"), None).unwrap();
    drop(volumes);
    crate::common::show_again("/dev/loop-control");
    let volumes = disk.open(VolumesBackend::Auto);
    assert!(volumes.describe().contains("from before"), "{}", volumes.describe());
    volumes.discard(&name("a")).unwrap();
    drop(volumes);
    assert_eq!(disk.open(VolumesBackend::Auto).kind(), VolumesBackend::Loop);
}

#[test]
fn an_image_grows_when_its_disk_did() {
    let disk = Disk::host();
    let open = |gib: u64| {
        let config = VolumesConfig { backend: VolumesBackend::Loop, image_size: Some(gib << 30) };
        Volumes::open(&disk.dir, config).unwrap()
    };
    let size = |volumes: &Volumes| {
        volumes.create(&name("a"), None).unwrap();
        let disk = rustix::fs::statvfs(volumes.path(&name("a"))).unwrap();
        volumes.discard(&name("a")).unwrap();
        (disk.f_blocks * disk.f_frsize) >> 30
    };
    assert_eq!(size(&open(2)), 2);
    assert_eq!(size(&open(5)), 5);
    assert_eq!(size(&open(3)), 5);
}

fn config(backend: VolumesBackend) -> VolumesConfig {
    VolumesConfig { backend, image_size: Some(4 << 30) }
}
