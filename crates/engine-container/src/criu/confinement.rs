//! What a CRIU process can reach while it works on the state of a hostile sandbox: a root directory of its own and an empty network,
//! and of the capabilities only those that its work needs. What remains is listed in `docs/isolation.md`.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, configure_capability_in_ambient_set,
    move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    unshare_unsafe,
};
use sys::Namespace;

use super::locate::Criu;

/// Where CRIU's own files are in its root.
pub(super) const TOOLS: &str = "/criu";
/// Where the directory of [`super::Checkpointer`] is in CRIU's root.
pub(super) const RUN: &str = "/run";
/// Where the sandbox's version 2 control group is in the root of a dump.
pub(super) const CGROUP: &str = "/cgroup";

/// Where the directory of the memory image is in CRIU's root.
pub(super) const IMAGES: &str = "/images";

/// What a dump needs on the host beside owning the sandbox's user namespace: to suspend the sandbox's system call filters
/// (`SYS_ADMIN`), to inspect its processes and read their directories in `/proc`, to take on the ids of its namespace, and to follow
/// links of mapped files. It gives deleted files names in their directories, whoever owns these, and takes the names away again
/// (`DAC_OVERRIDE`, `FOWNER`).
pub(super) const DUMP_CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHECKPOINT_RESTORE);

/// Directories of the host's programs besides `/usr`: links into it on most hosts.
const PROGRAM_DIRS: [&str; 3] = ["bin", "lib", "lib64"];

/// What a restore needs: what a dump does, and to change roots and owners, and to set the size of socket buffers, limits and priorities
/// beyond an owner's. Root would have all.
pub(super) const RESTORE_CAPABILITIES: CapabilitySet = DUMP_CAPABILITIES
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_NICE);

/// The root directory and the network of CRIU processes.
#[derive(Debug)]
pub(super) struct Confinement {
    /// An empty directory tree: mount points.
    root: PathBuf,
    /// What is mounted in it.
    mounts: Vec<Mount>,
    network: Namespace,
}

impl Confinement {
    /// Creates the root's directories in `run_dir`. `dir` is what CRIU sees at [`RUN`].
    ///
    /// # Errors
    /// A directory or the network namespace cannot be created.
    pub(super) fn new(criu: &Criu, run_dir: &Path, dir: &Path) -> io::Result<Self> {
        let root = run_dir.join("criu-root");
        fs::create_dir_all(root.join("dev"))?;
        fs::write(root.join("dev/null"), "")?;
        let mut mounts = Vec::new();
        for (source, target, read_only) in [
            (criu.prefix(), TOOLS, true),
            // CRIU packs the content of tmpfs mounts with the host's tar.
            (Path::new("/usr"), "/usr", true),
            // It tells the sandbox's file system of terminals from the host's. Terminals in it cannot be opened.
            (Path::new("/dev/pts"), "/dev/pts", true),
            (Path::new("/dev/null"), "/dev/null", false),
            (Path::new("/proc"), "/proc", false),
            (Path::new("/sys"), "/sys", false),
            (dir, RUN, false),
        ] {
            mounts.push(Mount::new(&root, source, target, read_only)?);
        }
        for name in PROGRAM_DIRS {
            let path = Path::new("/").join(name);
            match fs::read_link(&path) {
                Ok(link) => replace_link(&link, &root.join(name))?,
                Err(_) if path.is_dir() => mounts.push(Mount::new(&root, &path, name, true)?),
                Err(_) => {}
            }
        }
        // In /tmp a restore makes the mount point of the root that it builds.
        for target in [CGROUP, IMAGES, "/tmp"] {
            fs::create_dir_all(below(&root, target))?;
        }
        Ok(Self { root, mounts, network: Namespace::new_network()? })
    }

    /// Prepares what the child needs to enter, with the directory of the memory image, and for a dump the sandbox's control group.
    ///
    /// # Errors
    /// A path contains a zero byte.
    pub(super) fn entrance(&self, images: &Path, cgroup: Option<&Path>) -> io::Result<Entrance> {
        let mut mounts = self.mounts.clone();
        for (source, target) in [(images, IMAGES)].into_iter().chain(cgroup.map(|cgroup| (cgroup, CGROUP))) {
            mounts.push(Mount::new(&self.root, source, target, false)?);
        }
        Ok(Entrance { root: c_path(&self.root)?, mounts, network: self.network.as_fd().as_raw_fd() })
    }

    /// Removes the root's directories.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What a child needs between fork and exec to enter the confinement, without allocating.
pub(super) struct Entrance {
    root: CString,
    mounts: Vec<Mount>,
    /// The network namespace's descriptor, which the parent keeps open until the child has executed CRIU.
    network: i32,
}

impl Entrance {
    /// Moves the calling process, which has one thread, into the root and the network, and into new namespaces of the kinds `more`.
    /// Makes system calls only.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn enter(&self, more: UnshareFlags) -> io::Result<()> {
        // SAFETY: the child has one thread; only its own namespaces change.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | more) }?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // SAFETY: open in the parent, and so in this copy of its table.
        let network = unsafe { BorrowedFd::borrow_raw(self.network) };
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        let root: &CStr = &self.root;
        mount_bind(root, root)?;
        let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        for mount in &self.mounts {
            mount_bind(mount.source.as_c_str(), mount.target.as_c_str())?;
            if mount.read_only {
                mount_remount(mount.target.as_c_str(), read_only, c"")?;
            }
        }
        chdir(root)?;
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        Ok(chdir(c"/")?)
    }
}

/// Reduces the calling process's capabilities to `keep`, for good, also across `execve`. Makes system calls only.
///
/// # Errors
/// The kernel refused.
pub(super) fn keep_capabilities(keep: CapabilitySet) -> io::Result<()> {
    bound_capabilities(keep)?;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
    for capability in each(keep) {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(set_no_new_privs(true)?)
}

/// Limits the capabilities that the calling process gains with `execve` as root to `keep`. Makes system calls only.
///
/// # Errors
/// The kernel refused.
pub(super) fn bound_capabilities(keep: CapabilitySet) -> io::Result<()> {
    for capability in each(!keep) {
        match remove_capability_from_bounding_set(capability) {
            // This kernel does not have it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn each(capabilities: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .filter_map(|bit| CapabilitySet::from_bits(1 << bit))
        .filter(move |one| capabilities.contains(*one))
}

/// A directory or file of the host that CRIU sees.
#[derive(Debug, Clone)]
struct Mount {
    source: CString,
    target: CString,
    read_only: bool,
}

impl Mount {
    /// Describes the mount of `source` at `target` below `root`, and creates the directory there unless it exists.
    fn new(root: &Path, source: &Path, target: &str, read_only: bool) -> io::Result<Self> {
        let target = below(root, target);
        if !target.exists() {
            fs::create_dir_all(&target)?;
        }
        Ok(Self { source: c_path(source)?, target: c_path(&target)?, read_only })
    }
}

/// Makes the link `path` to `target`, also where an earlier server left one.
fn replace_link(target: &Path, path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(path);
    symlink(target, path)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
