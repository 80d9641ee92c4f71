//! Overlays as the container engine mounts them, with their upper in a tree, and in copies of it.
//! Proves what an engine may do with a copy: which part of the work directory goes, and that overlayfs' own marks survive.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{Disk, name};
use layers::{TreeName, Trees, TreesBackend, renew_overlay_work};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use sys::{Namespace, set_idmap, with_filesystem_ids};

const BASE: u32 = 1 << 24;

/// A process in a user namespace of its own, for the namespace.
struct Holder(Child);

impl Holder {
    fn start() -> Self {
        let command = ["--user", "sh", "-c", "echo; read -r _"];
        let mut child = Command::new("unshare")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {BASE} 65536")).unwrap();
        }
        Self(child)
    }

    fn namespace(&self) -> Namespace {
        Namespace::of_process(self.0.id().try_into().unwrap(), "user").unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A mounted overlay, reached through its descriptor.
struct Overlay(OwnedFd);

impl Overlay {
    fn path(&self, below: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(below)
    }

    /// Calls `act` with the ids of the sandbox's root: other ids cannot be stored through an idmapped upper directory.
    fn as_root<T>(&self, act: impl FnOnce(&Self) -> T) -> T {
        with_filesystem_ids(BASE, || act(self)).unwrap()
    }
}

fn shifted(path: &Path, namespace: &Namespace, read_only: bool) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags).unwrap();
    set_idmap(mount.as_fd(), namespace.as_fd(), read_only).unwrap();
    mount
}

fn mount(lower: &Path, tree: &Path, namespace: &Namespace) -> Result<Overlay, rustix::io::Errno> {
    let lower = shifted(lower, namespace, true);
    let writable = shifted(tree, namespace, false);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let [upper, work] = ["upper", "work"].map(|dir| openat(&writable, dir, flags, Mode::empty()).unwrap());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = context.as_fd();
    fsconfig_set_fd(fd, "lowerdir+", lower.as_fd())?;
    fsconfig_set_fd(fd, "upperdir", upper.as_fd())?;
    fsconfig_set_fd(fd, "workdir", work.as_fd())?;
    fsconfig_set_flag(fd, "volatile")?;
    for option in ["index", "nfs_export", "redirect_dir"] {
        fsconfig_set_string(fd, option, "on")?;
    }
    with_filesystem_ids(BASE, || fsconfig_create(fd)).unwrap()?;
    Ok(Overlay(fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?))
}

/// Creates a template with files to hide, replace, rename and link.
fn template(dir: &Path) {
    for sub in ["hidden", "replaced", "renamed/below"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for file in ["hidden/x", "replaced/old", "renamed/below/file", "gone", "one"] {
        fs::write(dir.join(file), file).unwrap();
    }
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
}

fn change(overlay: &Overlay) {
    fs::remove_file(overlay.path("gone")).unwrap();
    fs::remove_dir_all(overlay.path("hidden")).unwrap();
    fs::remove_dir_all(overlay.path("replaced")).unwrap();
    fs::create_dir(overlay.path("replaced")).unwrap();
    fs::write(overlay.path("replaced/new"), "new").unwrap();
    fs::rename(overlay.path("renamed"), overlay.path("elsewhere")).unwrap();
    fs::write(overlay.path("one"), "both").unwrap();
    fs::write(overlay.path("file"), "written").unwrap();
    chown(overlay.path("file"), Some(BASE + 1000), Some(BASE + 1000)).unwrap();
    rustix::fs::setxattr(overlay.path("file"), "user.note", b"kept", rustix::fs::XattrFlags::empty())
        .unwrap();
}

fn check(overlay: &Overlay) {
    let gone = |path: &str| !overlay.path(path).exists();
    assert!(gone("gone") && gone("hidden") && gone("replaced/old") && gone("renamed"));
    let read = |path: &str| fs::read_to_string(overlay.path(path)).unwrap();
    assert_eq!(read("replaced/new"), "new");
    assert_eq!(read("elsewhere/below/file"), "renamed/below/file");
    assert_eq!(read("file"), "written");
    assert_eq!(fs::metadata(overlay.path("file")).unwrap().uid(), BASE + 1000);
    let mut note = [0u8; 8];
    assert_eq!(rustix::fs::getxattr(overlay.path("file"), "user.note", &mut note).unwrap(), 4);
    // Two names of one file of the template.
    assert_eq!([read("one"), read("two")], ["both", "both"]);
}

fn prepare(trees: &Trees, tree: &TreeName) {
    trees.create(tree, Some(200)).unwrap();
    for dir in ["upper", "work"] {
        fs::create_dir(trees.path(tree).join(dir)).unwrap();
    }
}

fn an_upper_lives_in_copies(trees: &Trees, lower: &Path) {
    let holder = Holder::start();
    let namespace = holder.namespace();
    let (first, snapshot, fork) = (name("first"), name("snapshot"), name("fork"));
    prepare(trees, &first);
    let overlay = mount(lower, &trees.path(&first), &namespace).unwrap();
    overlay.as_root(change);
    check(&overlay);
    // While it is mounted, as for a sandbox that continues to run.
    trees.copy(&first, &snapshot, true, None).unwrap();
    overlay.as_root(|overlay| fs::write(overlay.path("file"), "later").unwrap());
    drop(overlay);

    // The same tree again, as after a pause.
    assert!(mount(lower, &trees.path(&first), &namespace).is_err(), "overlayfs accepts it without renewal");
    renew_overlay_work(&trees.path(&first).join("work"), false).unwrap();
    let again = mount(lower, &trees.path(&first), &namespace).unwrap();
    assert_eq!(fs::read_to_string(again.path("file")).unwrap(), "later");
    assert_eq!(fs::read_to_string(again.path("two")).unwrap(), "both");
    drop(again);

    for _ in 0..2 {
        trees.copy(&snapshot, &fork, false, Some(200)).unwrap();
        let work = trees.path(&fork).join("work");
        renew_overlay_work(&work, false).unwrap();
        assert!(
            mount(lower, &trees.path(&fork), &namespace).is_err(),
            "overlayfs accepts it without renewal"
        );
        renew_overlay_work(&work, true).unwrap();
        let overlay = mount(lower, &trees.path(&fork), &namespace).unwrap();
        check(&overlay);
        overlay.as_root(|overlay| fs::write(overlay.path("two"), "in the fork").unwrap());
        assert_eq!(fs::read_to_string(overlay.path("one")).unwrap(), "in the fork");
        drop(overlay);
        trees.discard(&fork).unwrap();
    }
}

#[test]
fn in_an_image() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Loop);
    let lower = disk.dir.join("lower");
    template(&lower);
    an_upper_lives_in_copies(&trees, &lower);
}

#[test]
fn by_copying() {
    let disk = Disk::host();
    let trees = disk.open(TreesBackend::Copy);
    let lower = disk.dir.join("lower");
    template(&lower);
    an_upper_lives_in_copies(&trees, &lower);
}

#[test]
fn by_reflink() {
    let disk = Disk::fresh("xfs", 512);
    let trees = disk.open(TreesBackend::Auto);
    let lower = disk.dir.join("lower");
    template(&lower);
    an_upper_lives_in_copies(&trees, &lower);
}
