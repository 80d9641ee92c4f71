//! CRIU's check of the kernel's features, made once as root; every dump and restore reads the result.
//! A dump runs as another uid and cannot check some features (`SIOCUNIXFILE`). Without the result it would take every Unix socket
//! bound to a file of an overlay for an unlinked one, and the file would be missing after the restore. The check also takes 40 ms.
//! CRIU only writes the result to a tmpfs, so it is given one and the file is copied from there.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::locate::Criu;
use super::process::{CriuProcess, CriuRole};
use super::rpc::{Kind, Options, Request};

/// CRIU's name of the result, below `/run` or `XDG_RUNTIME_DIR`.
const CACHE: &str = "criu.kdat";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Has CRIU check the kernel and writes the result to the directory `dir`.
///
/// # Errors
/// CRIU found nothing out, or the file cannot be written.
pub(super) fn check_kernel(criu: &Criu, dir: &Path) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let run = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let images = File::open(dir)?;
    let options = Options {
        images_dir_fd: images.as_raw_fd(),
        log_file: Some("check.log".to_owned()),
        ..Options::default()
    };
    let process = CriuProcess::start(criu, dir, CriuRole::CheckKernel { run: run.as_fd() }, TIMEOUT)?;
    let request = Request { kind: Kind::Check as i32, options: Some(options), notify_success: None };
    // Features that CRIU misses do not matter here: a dump that needs them fails with a reason.
    let response = process.ask(&request, |_, _| Ok(()));
    drop(process);
    let found = openat(&run, CACHE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut result = Vec::new();
    match found {
        Ok(file) => File::from(file).read_to_end(&mut result)?,
        Err(error) => return Err(response.err().unwrap_or_else(|| error.into())),
    };
    fs_atomic::write(&dir.join(CACHE), result, fs_atomic::Options::DEFAULT)
}
