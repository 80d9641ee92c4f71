//! [`Root`]: a root directory of mounts, and an empty network; [`Entrance`]: the way into it between fork and exec.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use sys::Namespace;

/// Directories of the host's programs besides `/usr`: links into it on most hosts.
const PROGRAM_DIRS: [&str; 3] = ["bin", "lib", "lib64"];

/// What the confined program may do with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it. Device nodes and set-user-id programs in it do not work.
    ReadOnly,
    /// Whatever its rights allow.
    Full,
}

/// A root directory and an empty network for confined programs.
#[derive(Debug)]
pub struct Root {
    /// A tree of mount points.
    dir: PathBuf,
    mounts: Vec<Mount>,
    network: Namespace,
}

/// A directory or file that confined programs see.
#[derive(Debug, Clone)]
struct Mount {
    source: Source,
    target: CString,
    access: Access,
}

#[derive(Debug, Clone)]
enum Source {
    Path(CString),
    /// The descriptor of a mount that is not attached anywhere, which the caller keeps open until the program runs.
    Detached(i32),
}

impl Root {
    /// Creates the directory `dir`, in which nothing is visible yet, unless it exists.
    ///
    /// # Errors
    /// The directory or the network namespace cannot be created.
    pub fn new(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), mounts: Vec::new(), network: Namespace::new_network()? })
    }

    /// Makes a directory or file of the host visible at the path `target`.
    ///
    /// # Errors
    /// The mount point cannot be created, or a path contains a zero byte.
    pub fn show(&mut self, source: &Path, target: &str, access: Access) -> io::Result<()> {
        self.mounts.push(self.bind(source, target, access)?);
        Ok(())
    }

    /// Makes the host's programs and their libraries visible, read-only, where the host has them.
    ///
    /// # Errors
    /// A mount point cannot be created.
    pub fn show_programs(&mut self) -> io::Result<()> {
        self.show(Path::new("/usr"), "/usr", Access::ReadOnly)?;
        for name in PROGRAM_DIRS {
            let path = Path::new("/").join(name);
            match fs::read_link(&path) {
                Ok(link) => replace_link(&link, &self.dir.join(name))?,
                Err(_) if path.is_dir() => self.show(&path, name, Access::ReadOnly)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes a mount of a directory or file that is not attached anywhere visible at the path `target`, as it is. It can be used once.
    ///
    /// # Errors
    /// The mount point cannot be created.
    pub fn show_detached(&mut self, mount: BorrowedFd<'_>, target: &str) -> io::Result<()> {
        let is_dir = FileType::from_raw_mode(fstat(mount)?.st_mode).is_dir();
        let target = self.mount_point(target, is_dir)?;
        self.mounts.push(Mount { source: Source::Detached(mount.as_raw_fd()), target, access: Access::Full });
        Ok(())
    }

    /// Creates an empty directory, which all programs in this root share.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create_dir(&self, target: &str) -> io::Result<()> {
        fs::create_dir_all(below(&self.dir, target))
    }

    /// Prepares what one program needs to enter; `more` are directories for it alone, with their paths in the root.
    ///
    /// # Errors
    /// A mount point cannot be created, or a path contains a zero byte.
    pub fn entrance(&self, more: &[(&Path, &str)]) -> io::Result<Entrance> {
        let mut mounts = self.mounts.clone();
        for (source, target) in more {
            mounts.push(self.bind(source, target, Access::Full)?);
        }
        Ok(Entrance { root: c_path(&self.dir)?, mounts, network: self.network.as_fd().as_raw_fd() })
    }

    /// Removes the directory.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    fn bind(&self, source: &Path, target: &str, access: Access) -> io::Result<Mount> {
        let target = self.mount_point(target, source.is_dir())?;
        Ok(Mount { source: Source::Path(c_path(source)?), target, access })
    }

    fn mount_point(&self, target: &str, is_dir: bool) -> io::Result<CString> {
        let target = below(&self.dir, target);
        if !target.exists() {
            fs::create_dir_all(if is_dir { &target } else { target.parent().unwrap_or(&self.dir) })?;
            if !is_dir {
                fs::write(&target, "")?;
            }
        }
        c_path(&target)
    }
}

/// What a child needs between fork and exec to enter a [`Root`], which must exist until then.
#[derive(Debug)]
pub struct Entrance {
    root: CString,
    mounts: Vec<Mount>,
    /// The network namespace's descriptor.
    network: i32,
}

impl Entrance {
    /// Moves the calling process, which has one thread, into the root and its network, and into new namespaces of the kinds `more`.
    /// Makes system calls only.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self, more: UnshareFlags) -> io::Result<()> {
        // SAFETY: the child has one thread; only its own namespaces change.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | more) }?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // SAFETY: open in the parent, and so in this copy of its table.
        let network = unsafe { BorrowedFd::borrow_raw(self.network) };
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        let root: &CStr = &self.root;
        mount_bind(root, root)?;
        self.mounts.iter().try_for_each(Mount::attach)?;
        let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(sys::change_root(&root)?)
    }
}

impl Mount {
    fn attach(&self) -> io::Result<()> {
        let target = self.target.as_c_str();
        match &self.source {
            Source::Path(path) => mount_bind(path.as_c_str(), target)?,
            // SAFETY: open in the parent, and so in this copy of its table.
            Source::Detached(mount) => sys::attach_at(unsafe { BorrowedFd::borrow_raw(*mount) }, target)?,
        }
        if self.access == Access::ReadOnly {
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(target, flags, c"")?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::thread::CapabilitySet;

    use super::*;
    use crate::confine;

    #[test]
    fn a_confined_program_sees_what_it_is_shown_and_has_what_it_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").expect("written");
        let shown = dir.path().join("shown");
        fs::create_dir(&shown).expect("created");
        fs::write(shown.join("file"), "shown").expect("written");
        let mut root = Root::new(&dir.path().join("root")).expect("a root");
        root.show_programs().expect("programs");
        root.show(Path::new("/proc"), "/proc", Access::Full).expect("proc");
        root.show(&shown, "/shown", Access::ReadOnly).expect("shown");
        let script = format!(
            "cat /shown/file; ls -A /; ls {} 2>&1; touch /shown/new 2>&1; id -u; id -G; tail -n +3 /proc/net/dev | cut -d: -f1; \
             grep -E 'CapEff|CapPrm|CapBnd|NoNewPrivs' /proc/self/status",
            secret.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]);
        let entrance = root.entrance(&[]).expect("an entrance");
        confine(&mut command, entrance, 4242, CapabilitySet::DAC_READ_SEARCH);
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0].split_at(5).0, "shown", "{text}");
        assert!(text.contains("No such file") && text.contains("Read-only file system"), "{text}");
        assert_eq!(lines.iter().filter(|line| **line == "4242").count(), 2, "{text}");
        assert!(!lines.contains(&"root") && !lines.contains(&"etc"), "{text}");
        assert!(lines.contains(&"lo") && !text.contains("eth0"), "{text}");
        for kind in ["CapEff", "CapPrm", "CapBnd"] {
            assert!(text.contains(&format!("{kind}:\t0000000000000004")), "{text}");
        }
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    }
}
