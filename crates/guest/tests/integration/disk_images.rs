//! Disk images as a kernel sees them: mounted on this host from a loop device. Needs root and
//! mkfs.ext4. Every mount is undone even if a test fails.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{GuestError, disk_images};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, mknodat};

/// A mounted image; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        let done =
            Command::new("mount").args(["-t", "ext4", "-o", options]).arg(image).arg(&at).status().unwrap();
        assert!(done.success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn value(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let length = lgetxattr(path, name, &mut buffer[..]).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn lower(layer: &Path) {
    for dir in ["etc", "hidden", "replaced", "renamed/below"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
    }
    for file in ["etc/kept", "etc/gone", "hidden/x", "replaced/old", "renamed/below/file"] {
        fs::write(layer.join(file), file).unwrap();
    }
    fs::hard_link(layer.join("etc/kept"), layer.join("etc/same")).unwrap();
    symlink("etc/kept", layer.join("link")).unwrap();
    chown(layer.join("etc/kept"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(layer.join("etc/kept"), fs::Permissions::from_mode(0o4755)).unwrap();
    set(&layer.join("etc/kept"), "security.capability", &CAPABILITY);
    set(&layer.join("etc/kept"), "user.note", b"kept");
    set(&layer.join("etc/kept"), "user.large", &[7; 3000]);
    mknodat(CWD, layer.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    // The lowest layer of an image may have marks of overlayfs too.
    set(&layer.join("etc"), "trusted.overlay.opaque", b"y");
    mknodat(CWD, layer.join("etc/nothing"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn upper(layer: &Path) {
    for dir in ["etc", "replaced", "elsewhere"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
    }
    for gone in ["etc/gone", "hidden", "renamed"] {
        mknodat(CWD, layer.join(gone), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }
    fs::write(layer.join("replaced/new"), "new").unwrap();
    set(&layer.join("replaced"), "trusted.overlay.opaque", b"y");
    set(&layer.join("elsewhere"), "trusted.overlay.redirect", b"/renamed");
}

#[test]
fn a_base_image_has_the_merged_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layers = ["upper", "lower"].map(|name| dir.path().join(name));
    layers.iter().for_each(|layer| fs::create_dir(layer).unwrap());
    upper(&layers[0]);
    lower(&layers[1]);
    let image = dir.path().join("base.ext4");
    disk_images::build_base(&layers, &image).unwrap();
    let mounted = Mounted::new(&image, dir.path().join("mounted"), "ro");
    let at = |path: &str| mounted.0.join(path);
    for gone in ["etc/gone", "etc/nothing", "hidden", "renamed", "replaced/old", "lost+found"] {
        assert!(fs::symlink_metadata(at(gone)).is_err(), "{gone} is there");
    }
    assert_eq!(fs::read_to_string(at("elsewhere/below/file")).unwrap(), "renamed/below/file");
    assert_eq!(fs::read_to_string(at("replaced/new")).unwrap(), "new");
    let kept = fs::metadata(at("etc/kept")).unwrap();
    assert_eq!((kept.uid(), kept.gid(), kept.mode(), kept.nlink()), (1000, 1001, 0o104_755, 2));
    assert_eq!(kept.ino(), fs::metadata(at("etc/same")).unwrap().ino());
    let original = fs::metadata(layers[1].join("etc/kept")).unwrap();
    assert_eq!(kept.mtime(), original.mtime());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("etc/kept"));
    assert_eq!(value(&at("etc/kept"), "security.capability").unwrap(), CAPABILITY);
    assert_eq!(value(&at("etc/kept"), "user.note").unwrap(), b"kept");
    assert_eq!(value(&at("etc/kept"), "user.large").unwrap(), [7; 3000]);
    assert!(FileType::from_raw_mode(fs::symlink_metadata(at("pipe")).unwrap().mode()) == FileType::Fifo);
    for dir in ["etc", "replaced", "elsewhere", ""] {
        let mut names = vec![0; 4096];
        let length = llistxattr(at(dir), &mut names[..]).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        assert!(!names.contains("overlay"), "{dir}: {names:?}");
    }
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let again = dir.path().join("again.ext4");
    disk_images::build_base(&layers, &again).unwrap();
    assert!(fs::read(&image).unwrap() == fs::read(&again).unwrap(), "equal layers gave different images");
    drop(mounted);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
}

#[test]
fn a_single_layer_fits_into_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    // Content that cannot be compressed, and many small files: both are easily underestimated.
    fs::write(layer.join("large"), vec![1; 40 << 20]).unwrap();
    fs::create_dir(layer.join("many")).unwrap();
    fs::create_dir(layer.join("lost+found")).unwrap();
    fs::write(layer.join("lost+found/own"), "x").unwrap();
    (0..5000).for_each(|number| fs::write(layer.join(format!("many/{number}")), "x").unwrap());
    let image = dir.path().join("base.ext4");
    disk_images::build_base(&[layer], &image).unwrap();
    let mounted = Mounted::new(&image, dir.path().join("mounted"), "ro");
    assert_eq!(fs::read_dir(mounted.0.join("many")).unwrap().count(), 5000);
    assert!(mounted.0.join("lost+found/own").is_file());
    assert_eq!(fs::metadata(mounted.0.join("large")).unwrap().len(), 40 << 20);
}

#[test]
fn a_missing_layer_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("base.ext4");
    let missing = PathBuf::from("/nonexistent/layer");
    let error = disk_images::build_base(&[missing], &target).unwrap_err();
    assert!(matches!(error, GuestError::NoLayer { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_empty_disk_takes_little_space_and_has_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("empty.ext4");
    disk_images::format_empty(1024, &image).unwrap();
    let file = fs::metadata(&image).unwrap();
    assert_eq!(file.len(), 1 << 30);
    assert!(file.blocks() * 512 < 16 << 20, "{} KiB", file.blocks() / 2);
    let mounted = Mounted::new(&image, dir.path().join("mounted"), "rw");
    let free = rustix::fs::statvfs(&mounted.0).unwrap();
    assert!(free.f_bavail * free.f_frsize > 950 << 20, "{} MiB", (free.f_bavail * free.f_frsize) >> 20);
}

/// mkfs.ext4 runs on the host as root, and longer paths overflow its buffer.
#[test]
fn paths_are_no_longer_than_mkfs_can_copy() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    let of_length = |length: usize| layer.join("d/".repeat(length / 2 - 1)).join("e");
    fs::create_dir_all(of_length(2000)).unwrap();
    disk_images::build_base(std::slice::from_ref(&layer), &dir.path().join("image")).unwrap();
    for length in [2002, 2040, 3900] {
        fs::create_dir_all(of_length(length)).unwrap();
        let error =
            disk_images::build_base(std::slice::from_ref(&layer), &dir.path().join("image")).unwrap_err();
        assert!(matches!(error, GuestError::TooDeep(found) if found == length), "{error}");
    }
}
