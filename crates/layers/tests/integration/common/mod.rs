//! Data directories on file systems of every kind, each test with its own.
//! Mounts are made in a mount namespace of the test's own thread and loop devices clear themselves, so nothing is left over.
//! Needs root, btrfs-progs and xfsprogs (`cargo xtask unit` installs them).

#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use layers::{TreeName, Trees, TreesBackend, TreesConfig};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use sys::LoopDevice;

/// A data directory and the disk that it is on.
pub(crate) struct Disk {
    pub(crate) dir: PathBuf,
    device: Option<LoopDevice>,
    _place: Option<tempfile::TempDir>,
}

impl Disk {
    /// Creates one on the host's disk.
    pub(crate) fn host() -> Self {
        let place = tempfile::tempdir().unwrap();
        Self { dir: place.path().join("data"), device: None, _place: Some(place) }
    }

    /// Opens that of another process.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir, device: None, _place: None }
    }

    /// Creates one on a new file system of `kind` and `mib` MiB, which only this thread and its children see.
    pub(crate) fn fresh(kind: &str, mib: u64) -> Self {
        let place = tempfile::tempdir().unwrap();
        own_mounts();
        let image = place.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        file.set_len(mib << 20).unwrap();
        let made = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).status();
        assert!(made.expect("the mkfs programs are installed").success());
        let device = LoopDevice::attach(&file).unwrap();
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(context.as_fd(), "source", device.path()).unwrap();
        fsconfig_create(context.as_fd()).unwrap();
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let dir = place.path().join("mounted");
        fs::create_dir(&dir).unwrap();
        move_mount(&mount, "", CWD, &dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        Self { dir: dir.join("data"), device: Some(device), _place: Some(place) }
    }

    pub(crate) fn open(&self, backend: TreesBackend) -> Trees {
        Trees::open(&self.dir, TreesConfig { backend, image_size: Some(4 << 30) }).unwrap()
    }

    /// Returns the loop device that serves our image, if there is one.
    pub(crate) fn image_device(&self) -> Option<PathBuf> {
        let image = File::open(self.dir.join("volumes.btrfs")).unwrap();
        LoopDevice::find(&image).unwrap().map(|device| device.path().to_owned())
    }

    /// The kernel takes a mount apart on its way out of a process; the device's own file tells the end.
    pub(crate) fn wait_until_detached(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.image_device().is_some() {
            assert!(Instant::now() < end, "the loop device is still there");
            std::thread::yield_now();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.is_some() {
            let mounted = self.dir.parent().unwrap();
            rustix::mount::unmount(mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}

/// Gives this thread, and those it starts, a mount namespace of their own.
fn own_mounts() {
    // SAFETY: file descriptors stay shared; only the view of mounts becomes this thread's own.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

/// Mounts an unusable file over a device.
pub(crate) fn hide_from_this_thread(path: &str) {
    own_mounts();
    rustix::mount::mount_bind("/dev/null", path).unwrap();
}

pub(crate) fn show_again(path: &str) {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()).unwrap();
}

pub(crate) fn name(text: &str) -> TreeName {
    text.parse().unwrap()
}

/// Returns an incompressible MiB.
pub(crate) fn noise() -> Vec<u8> {
    (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_ne_bytes()).collect()
}

/// Describes everything about a tree that a copy must keep, as text.
pub(crate) fn describe(tree: &Path) -> String {
    const SCRIPT: &str = r#"
        cd "$0" || exit
        find . -type d -printf '%p %m %U %G %T@\n' -o -printf '%p %y %m %U %G %s %T@ %n %l\n' | sort
        find . | sort | xargs -d '\n' getfattr -dhm - -e hex 2>/dev/null"#;
    let answer = Command::new("sh").args(["-c", SCRIPT]).arg(tree).output().unwrap();
    String::from_utf8_lossy(&answer.stdout).into_owned()
}
