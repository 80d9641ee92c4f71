//! The btrfs image: created once, attached to one loop device, and mounted detached, so that nothing is left over when the server is
//! killed. Errors name what has to be installed or loaded on the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FlockOperation, flock, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
};
use sys::{LoopDevice, btrfs};

use crate::LayerError;
use walk::open_dir;

/// Minimum size of the image, bytes: btrfs is of no use in less.
const MIN_SIZE: u64 = 1 << 30;
/// Maximum size of the image, bytes: a little less than the maximum file size of ext4 with 4 KiB blocks.
const MAX_SIZE: u64 = 15 << 40;

/// A mounted image. Dropping it unmounts it, unless sandboxes still use it.
#[derive(Debug)]
pub(super) struct Image {
    root: OwnedFd,
    /// The mount exists as long as this descriptor is open.
    _mount: OwnedFd,
    device: LoopDevice,
}

impl Image {
    pub(super) fn open(path: &Path, size: Option<u64>) -> Result<Self, LayerError> {
        let size = match size {
            Some(size) => size,
            None => disk_size(path).map_err(LayerError::at(path))?,
        };
        let size = size.clamp(MIN_SIZE, MAX_SIZE) & !((1 << 20) - 1);
        if path.exists() {
            return Self::attach(path, size);
        }
        make(path, size)?;
        // An image that cannot be used is removed; otherwise the next start would assume that it has trees.
        Self::attach(path, size).inspect_err(|_| drop(fs::remove_file(path)))
    }

    fn attach(path: &Path, size: u64) -> Result<Self, LayerError> {
        // No other server may attach the image between looking for a device and attaching one. The file is opened a second time for
        // the lock, because the loop device keeps the attached open file, and a lock on it, for as long as the device exists.
        let lock = File::open(path).map_err(LayerError::at(path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(LayerError::at(path))?;
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(LayerError::at(path))?;
        let grown = file.metadata().map_err(LayerError::at(path))?.len() < size;
        if grown {
            file.set_len(size).map_err(LayerError::at(path))?;
        }
        let device = match LoopDevice::find(&file).map_err(LayerError::at(path))? {
            Some(device) => {
                if grown {
                    device.update_size().map_err(LayerError::at(device.path()))?;
                }
                device
            }
            None => LoopDevice::attach(&file).map_err(|error| LayerError::Backend {
                what: format!("{} cannot be attached to a loop device ({error})", path.display()),
                remedy: "`modprobe loop`, and give a server in a container /dev/loop-control and /dev/loop*"
                    .into(),
            })?,
        };
        let (mount, root) = mount(device.path(), path)?;
        if grown {
            btrfs::grow_to_device(root.as_fd()).map_err(LayerError::at(path))?;
        }
        let image = Self { root, _mount: mount, device };
        let inside = image.root();
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o700)).map_err(LayerError::at(path))?;
        image.check_clones()?;
        Ok(image)
    }

    /// Returns a path of the root that is valid for this process and its children.
    pub(super) fn root(&self) -> PathBuf {
        // The pid in /proc's pid namespace, which differs from our own in a container that sees the host's /proc.
        let own = fs::read_link("/proc/self").unwrap_or_else(|_| "self".into());
        Path::new("/proc").join(own).join("fd").join(self.root.as_raw_fd().to_string())
    }

    pub(super) fn direct_io(&self) -> bool {
        self.device.direct_io
    }

    /// Checks that parts of the mount can be cloned, as engines do; older kernels refuse that in a detached mount.
    fn check_clones(&self) -> Result<(), LayerError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, self.root(), flags).map(drop).map_err(|error| LayerError::Backend {
            what: format!("this kernel cannot clone parts of a detached mount ({error})"),
            remedy: "boot Linux 6.15 or newer, or put the data directory on btrfs".into(),
        })
    }
}

/// Returns the size of the disk that `path` will be on.
fn disk_size(path: &Path) -> io::Result<u64> {
    let disk = statvfs(path.parent().unwrap_or(Path::new(".")))?;
    Ok(disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Creates the image under another name and renames it, so that it appears complete.
fn make(path: &Path, size: u64) -> Result<(), LayerError> {
    let new = path.with_extension("btrfs.new");
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let file = file.map_err(LayerError::at(&new))?;
    let made = format(&file, &new, size).and_then(|()| {
        file.sync_all().map_err(LayerError::at(&new))?;
        fs::rename(&new, path).map_err(LayerError::at(path))
    });
    made.inspect_err(|_| drop(fs::remove_file(&new)))
}

fn format(file: &File, path: &Path, size: u64) -> Result<(), LayerError> {
    file.set_len(size).map_err(LayerError::at(path))?;
    // Administrators' directories are not on every server's PATH.
    let program = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"]
        .map(|dir| Path::new(dir).join("mkfs.btrfs"))
        .into_iter()
        .find(|program| program.exists())
        .unwrap_or_else(|| "mkfs.btrfs".into());
    let answer = Command::new(program)
        .args(["--quiet", "--label", "cofferdam", "--nodiscard"])
        .arg(path)
        .stdin(Stdio::null())
        .output();
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LayerError::Backend {
            what: "mkfs.btrfs is missing".into(),
            remedy: "install it (Debian: apt install btrfs-progs)".into(),
        }),
        Err(error) => Err(LayerError::at(path)(error)),
        Ok(answer) if answer.status.success() => Ok(()),
        Ok(answer) => Err(LayerError::Backend {
            what: format!("mkfs.btrfs failed: {}", String::from_utf8_lossy(&answer.stderr).trim()),
            remedy: "run it by hand to see more".into(),
        }),
    }
}

/// Mounts the device, which serves `image`, without attaching the mount; returns the mount and its root, open.
fn mount(device: &Path, image: &Path) -> Result<(OwnedFd, OwnedFd), LayerError> {
    let attempt = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let context = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", device)?;
        // Blocks that are freed go back to the disk below.
        fsconfig_set_string(context.as_fd(), "discard", "async")?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let root = open_dir(&mount, c".")?;
        Ok((mount, root))
    };
    attempt().map_err(|error| match error {
        Errno::NODEV => LayerError::Backend {
            what: "this kernel has no btrfs".into(),
            remedy: "load its module (`modprobe btrfs`)".into(),
        },
        error => LayerError::Backend {
            what: format!("{} cannot be mounted ({error})", image.display()),
            remedy: format!("see what dmesg says of it, and `btrfs check {}`", image.display()),
        },
    })
}
