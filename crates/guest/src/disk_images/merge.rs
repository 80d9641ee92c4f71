//! Merges the layers of a template: an overlay that is not attached anywhere, so it ends with its
//! descriptor.
//!
//! What overlayfs writes in layers for itself (whiteouts, opaque directories, redirects) is applied
//! and not visible. Read-only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// The merged tree.
#[derive(Debug)]
pub(super) struct MergedLayers(OwnedFd);

impl MergedLayers {
    /// Returns the mount, which is not attached anywhere.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Returns the path of the tree, for this process and its children.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

/// Merges `layers`, uppermost first, and the empty directory `bottom`.
///
/// # Errors
/// A layer is missing, or overlayfs refuses the stack.
pub(super) fn mount(layers: &[PathBuf], bottom: &Path) -> io::Result<MergedLayers> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for layer in layers.iter().map(PathBuf::as_path).chain([bottom]) {
        // By descriptor, because the value is limited to 255 bytes.
        let dir = openat(CWD, layer, flags, Mode::empty())?;
        fsconfig_set_string(&context, "lowerdir+", format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    }
    fsconfig_set_string(&context, "redirect_dir", "follow")?;
    fsconfig_set_string(&context, "metacopy", "off")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(MergedLayers(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
}
