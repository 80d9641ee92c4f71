//! [`ResourceFiles`]: the mounted file system and the process that serves it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine_host::Hierarchies;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, open, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};
use tracing::{error, warn};

use crate::content::{ENTRIES, TOP};
use crate::serve::serve;

/// A process that lived for less than this is not replaced: it would die again.
const MIN_LIFE: Duration = Duration::from_secs(1);

/// The file system with the files of all sandboxes of this server. Dropped, it stays mounted in sandboxes that run.
#[derive(Debug)]
pub struct ResourceFiles {
    /// A detached mount of the whole.
    mount: OwnedFd,
    /// The connection, for a process that replaces one that died; `None` once this is dropped.
    device: Arc<Mutex<Option<OwnedFd>>>,
}

impl ResourceFiles {
    /// Mounts the file system and has it served by the program `program`, which is called with `arguments` and those of
    /// [`arguments`](Self::server_arguments); its standard input is the connection. Without a program a thread of this process serves, and
    /// the files end with this process.
    ///
    /// # Errors
    /// The kernel has no FUSE, or the program cannot be started.
    pub fn open(hierarchies: &Hierarchies, program: Option<&Path>) -> io::Result<Self> {
        let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mount = mount(&device)?;
        let served = device.try_clone()?;
        let device = Arc::new(Mutex::new(Some(device)));
        match program {
            None => serve_on_thread(served, hierarchies)?,
            Some(program) => {
                let program =
                    Program { path: program.to_owned(), arguments: Self::server_arguments(hierarchies) };
                let child = program.start(served)?;
                let (device, name) = (device.clone(), "resource-files");
                thread::Builder::new()
                    .name(name.into())
                    .spawn(move || program.keep_running(child, &device))?;
            }
        }
        Ok(Self { mount, device })
    }

    /// Returns the arguments by which the serving program is told where control groups are.
    fn server_arguments(hierarchies: &Hierarchies) -> Vec<OsString> {
        let mut arguments =
            vec!["resource-files".into(), "--unified".into(), hierarchies.unified.clone().into()];
        for (controller, path) in &hierarchies.v1 {
            let mut value = OsString::from(format!("{}=", controller.name()));
            value.push(path);
            arguments.extend(["--controller".into(), value]);
        }
        arguments
    }

    /// Returns the tree of the sandbox with the control group `group`, as a detached read-only mount. All its names are looked up, so
    /// that the kernel knows them when the sandbox starts.
    ///
    /// # Errors
    /// There is no such group; `ENOTCONN` if nothing serves the files any more.
    pub fn tree(&self, group: &str) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(&self.mount, group, flags)?;
        for entry in ENTRIES.iter().skip(1) {
            let parent = &ENTRIES[entry.parent];
            let path = if entry.parent == TOP {
                entry.name.to_owned()
            } else {
                format!("{}/{}", parent.name, entry.name)
            };
            statat(&tree, path, AtFlags::empty())?;
        }
        Ok(tree)
    }

    /// Returns the directory `name` of a sandbox's tree as a detached mount of its own.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn directory(tree: impl AsFd, name: &str) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(tree, name, flags)?)
    }
}

impl Drop for ResourceFiles {
    fn drop(&mut self) {
        self.device.lock().take();
    }
}

/// Mounts the file system behind the open device; returns it as a detached mount.
fn mount(device: &OwnedFd) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "cofferdam")?;
    fsconfig_set_string(&context, "fd", device.as_raw_fd().to_string())?;
    fsconfig_set_string(&context, "rootmode", "40555")?;
    fsconfig_set_string(&context, "user_id", "0")?;
    fsconfig_set_string(&context, "group_id", "0")?;
    fsconfig_set_flag(&context, "allow_other")?;
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

fn serve_on_thread(device: OwnedFd, hierarchies: &Hierarchies) -> io::Result<()> {
    let hierarchies = Hierarchies { unified: hierarchies.unified.clone(), v1: hierarchies.v1.clone() };
    let serve = move || {
        if let Err(error) = serve(device, &hierarchies) {
            error!(%error, "the files that show sandboxes their size are no longer served");
        }
    };
    thread::Builder::new().name("resource-files".into()).spawn(serve)?;
    Ok(())
}

/// The program that serves.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    fn start(&self, device: OwnedFd) -> io::Result<Child> {
        Command::new(&self.path)
            .arg0("cofferdam")
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(device))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    }

    /// Waits for the end of the process and starts another one, which serves the same connection, until this server ends. When that is
    /// not possible the connection is closed: then reads fail, and do not wait for ever.
    fn keep_running(&self, mut child: Child, device: &Mutex<Option<OwnedFd>>) {
        loop {
            let started = Instant::now();
            let status = child.wait();
            let Some(served) = device.lock().as_ref().map(OwnedFd::try_clone) else { return };
            warn!(?status, "the process that shows sandboxes their size has ended; starting another one");
            let next = if started.elapsed() < MIN_LIFE {
                Err(io::Error::other("it does not stay alive"))
            } else {
                served.and_then(|served| self.start(served))
            };
            match next {
                Ok(next) => child = next,
                Err(error) => {
                    error!(%error, "failed to start the process that shows sandboxes their size: new ones see the host's, those that run none");
                    device.lock().take();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use rustix::fs::openat;

    use super::*;
    use crate::control::tests::fake;

    fn read(tree: &OwnedFd, path: &str) -> String {
        let mut text = String::new();
        let file = openat(tree, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        File::from(file).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_sandbox_sees_its_own_size() {
        let (_dir, hierarchies) = fake(1);
        std::fs::create_dir_all(hierarchies.unified.join("s10000000")).unwrap();
        let files = ResourceFiles::open(&hierarchies, None).unwrap();
        let tree = files.tree("s10000000").unwrap();
        assert!(files.tree("s20000000").is_err());
        assert!(read(&tree, "proc/meminfo").starts_with("MemTotal:        1048576 kB\n"));
        assert_eq!(read(&tree, "cgroup/memory.max"), "1073741824\n");
        assert_eq!(read(&tree, "cgroup/pids.max"), "512\n");
        assert_eq!(read(&tree, "proc/loadavg"), "0.00 0.00 0.00 1/3 3\n");
        assert!(read(&tree, "proc/uptime").split_once(' ').unwrap().0.parse::<f64>().unwrap() > 0.0);
        let names = rustix::fs::Dir::new(openat(&tree, ".", OFlags::RDONLY, Mode::empty()).unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned());
        assert_eq!(names.collect::<Vec<_>>(), [c"proc", c"cpu", c"cgroup"]);
    }

    /// Nothing is stored for an open file, so a reader may be as slow as it likes.
    #[test]
    fn files_are_read_in_parts() {
        let (_dir, hierarchies) = fake(1);
        std::fs::create_dir_all(hierarchies.unified.join("s10000000")).unwrap();
        let files = ResourceFiles::open(&hierarchies, None).unwrap();
        let tree = files.tree("s10000000").unwrap();
        let whole = read(&tree, "proc/meminfo");
        let file = File::from(
            openat(&tree, "proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        );
        let mut parts = Vec::new();
        let mut part = [0u8; 7];
        while let length @ 1.. = file.read_at(&mut part, parts.len() as u64).unwrap() {
            parts.extend_from_slice(&part[..length]);
        }
        assert_eq!(String::from_utf8(parts).unwrap(), whole);
    }

    #[test]
    fn without_a_serving_process_reads_fail_and_do_not_wait() {
        let (_dir, hierarchies) = fake(1);
        let files = ResourceFiles::open(&hierarchies, Some(Path::new("/bin/false"))).unwrap();
        let error = files.tree("s10000000").unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(103 | 107)), "ECONNABORTED or ENOTCONN, not {error}");
    }

    #[test]
    fn nothing_can_be_written() {
        let (_dir, hierarchies) = fake(1);
        std::fs::create_dir_all(hierarchies.unified.join("s10000000")).unwrap();
        let files = ResourceFiles::open(&hierarchies, None).unwrap();
        let tree = files.tree("s10000000").unwrap();
        for path in ["proc/meminfo", "cgroup/memory.max", "cgroup/new"] {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            assert_eq!(openat(&tree, path, flags, Mode::RUSR).unwrap_err(), rustix::io::Errno::ROFS);
        }
    }
}
