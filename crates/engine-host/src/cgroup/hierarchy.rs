//! [`Hierarchies`]: the cgroup hierarchies of this host, and this server's directory in each.
//! Most hosts have version 2 with all controllers; some keep controllers in version 1.
//! Where version 2 is not mounted at all, the engine mounts it for itself, because freezing and killing need it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use tracing::warn;

use super::total::{self, HostTotals};
use super::v1::Controller;

/// This server's directory in each hierarchy in use.
#[derive(Debug)]
pub struct Hierarchies {
    /// In version 2.
    pub unified: PathBuf,
    /// In version 1, one for each controller that version 2 does not have.
    pub v1: Vec<(Controller, PathBuf)>,
}

impl Hierarchies {
    /// Finds the hierarchies in use and creates the directory `instance` in each.
    ///
    /// # Errors
    /// A hierarchy cannot be mounted or written to.
    pub fn open(instance: &str, run_dir: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let unified_root = match find_mount(&mounts, "cgroup2", None) {
            Some(root) => root,
            None => mount_unified(&run_dir.join("cgroup2"))?,
        };
        let unified = unified_root.join(instance);
        fs::create_dir_all(&unified)?;
        let available = fs::read_to_string(unified_root.join("cgroup.controllers"))?;
        let v1 = if available.split_whitespace().any(|name| name == "memory") {
            for dir in [&unified_root, &unified] {
                fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
            }
            Vec::new()
        } else {
            Controller::ALL
                .into_iter()
                .filter_map(|kind| {
                    Some((kind, find_mount(&mounts, "cgroup", Some(kind.name()))?.join(instance)))
                })
                .collect()
        };
        v1.iter().try_for_each(|(_, dir)| fs::create_dir_all(dir))?;
        let hierarchies = Self { unified, v1 };
        for (file, error) in total::limit_together(&hierarchies, &HostTotals::read()?) {
            warn!(file, %error, "failed to limit all sandboxes together");
        }
        Ok(hierarchies)
    }

    /// Whether processors, memory and the number of processes can all be limited.
    pub fn has_limits(&self) -> bool {
        self.v1.is_empty()
            || Controller::LIMITING.iter().all(|kind| self.v1.iter().any(|(have, _)| have == kind))
    }

    /// Returns this server's directories.
    pub fn instance_roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|(_, path)| path).chain([&self.unified])
    }

    /// Returns the directory in version 2 of the group that this server is in.
    ///
    /// # Errors
    /// The group is outside of what is mounted.
    pub fn server_group(&self) -> io::Result<PathBuf> {
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let root = self.unified.parent().unwrap_or(&self.unified);
        let dir = own.map(|own| root.join(own)).filter(|dir| dir.join("cgroup.procs").exists());
        dir.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the server's control group is not visible")
        })
    }

    /// Returns the names of the groups in them.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn groups(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for root in self.instance_roots() {
            for entry in fs::read_dir(root)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Removes this server's directories if they are empty.
    pub fn remove_if_empty(&self) {
        for root in self.instance_roots() {
            let _ = fs::remove_dir(root);
        }
    }
}

/// Returns the mount point of a file system of type `kind`, with the super block option `option` if one is given.
fn find_mount(mountinfo: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, device) = line.split_once(" - ")?;
        let mut device = device.split(' ');
        let mount_point = mount.split(' ').nth(4)?;
        let of_kind = device.next()? == kind;
        let options = device.nth(1)?;
        let has_option = option.is_none_or(|wanted| options.split(',').any(|have| have == wanted));
        (of_kind && has_option).then(|| PathBuf::from(mount_point))
    })
}

fn mount_unified(at: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(at)?;
    mount("cgroup2", at, "cgroup2", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    Ok(at.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies_in_mountinfo() {
        let text = "30 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw\n\
                    31 24 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    32 24 0:28 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n";
        assert_eq!(find_mount(text, "cgroup2", None).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(find_mount(text, "cgroup", Some("cpu")).unwrap(), Path::new("/sys/fs/cgroup/cpu"));
        assert!(find_mount(text, "cgroup", Some("memory")).is_none());
    }
}
