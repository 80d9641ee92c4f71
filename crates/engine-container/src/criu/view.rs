//! What CRIU sees of the host and which capabilities it has while it works on the state of a hostile sandbox: `docs/criu.md` has the
//! reasons, `docs/isolation.md` what remains.

use std::io;
use std::path::Path;

use confinement::{Access, Root};
use rustix::thread::CapabilitySet;

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

/// What a restore needs: what a dump does, and to change roots and owners, and to set the size of socket buffers, limits and priorities
/// beyond an owner's. Root would have all.
pub(super) const RESTORE_CAPABILITIES: CapabilitySet = DUMP_CAPABILITIES
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_NICE);

/// Creates CRIU's root in `run_dir`. `dir` is what CRIU sees at [`RUN`].
///
/// # Errors
/// A directory or the network namespace cannot be created.
pub(super) fn new(criu: &Criu, run_dir: &Path, dir: &Path) -> io::Result<Root> {
    let mut root = Root::new(&run_dir.join("criu-root"))?;
    root.show(criu.prefix(), TOOLS, Access::ReadOnly)?;
    // CRIU packs the content of tmpfs mounts with the host's tar.
    root.show_programs()?;
    // It tells the sandbox's file system of terminals from the host's. Terminals in it cannot be opened.
    root.show(Path::new("/dev/pts"), "/dev/pts", Access::ReadOnly)?;
    for path in ["/dev/null", "/proc", "/sys"] {
        root.show(Path::new(path), path, Access::Full)?;
    }
    root.show(dir, RUN, Access::Full)?;
    // A restore makes the mount point of the root that it builds there.
    root.create_dir("/tmp")?;
    Ok(root)
}
