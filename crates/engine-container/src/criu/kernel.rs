//! What CRIU has to know about the kernel, learnt once as root and given to every dump and restore.
//! A dump runs as another uid and would not even try some of it (`SIOCUNIXFILE`): it would then take every Unix socket bound to a file
//! of an overlay for an unlinked one, and the file would be missing after the restore. It also costs 40 ms each time.
//! CRIU keeps this on a tmpfs only, so it is given one, and we keep the file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::locate::Criu;
use super::process::{Place, Process};
use super::rpc::{Kind, Options, Request};

/// CRIU's name for it, below `/run` or `XDG_RUNTIME_DIR`.
const CACHE: &str = "criu.kdat";
const PATIENCE: Duration = Duration::from_secs(20);

/// Has CRIU look at the kernel and leaves what it found in `directory`.
pub(super) fn learn(criu: &Criu, dir: &Path) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let run = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let images = File::open(dir)?;
    let options = Options {
        images_dir_fd: images.as_raw_fd(),
        log_file: Some("check.log".to_owned()),
        ..Options::default()
    };
    let process = Process::start(criu, dir, Place::Alone { run: run.as_fd() }, PATIENCE)?;
    let request = Request { kind: Kind::Check as i32, options: Some(options), notify_success: None };
    // Whether it is content with all it found does not matter here.
    let answer = process.ask(&request, |_, _| Ok(()));
    drop(process);
    let found = openat(&run, CACHE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut known = Vec::new();
    match found {
        Ok(file) => File::from(file).read_to_end(&mut known)?,
        Err(error) => return Err(answer.err().unwrap_or_else(|| error.into())),
    };
    let (new, cache) = (dir.join("criu.kdat.new"), dir.join(CACHE));
    fs::write(&new, known)?;
    fs::rename(new, cache)
}
