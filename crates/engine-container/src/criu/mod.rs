//! Memory images by CRIU: the only place that runs it, and everything known about its ways.
//! What it makes is owned by, and charged to, the sandbox's own owner id: see `process` and `owner`.
//! Flags and traps: `docs/criu.md`.

mod images;
mod kernel;
mod locate;
mod owner;
mod process;
mod rpc;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::EngineError;
use rustix::fs::{CWD, Mode, OFlags, openat};

use images::Prepared;
pub(crate) use images::remove_prepared;
pub use locate::Criu;
use process::{Place, Process};
use rpc::{Kind, Options, Request};

/// Deleted files up to this size are carried in the image, bytes.
const GHOST_LIMIT: u32 = 64 << 20;
/// The key that both sides give to the one mount CRIU does not make: `/dev`.
const DEV_KEY: &str = "dev";
/// Options that have no number in CRIU's protocol.
const DUMP_OPTIONS: &str = "network-lock skip\nunprivileged\n";
const RESTORE_OPTIONS: &str = "network-lock skip\n";

/// Longest silence of a restore: somebody waits for it, and nothing is lost when it is ended.
const RESTORE_PATIENCE: Duration = Duration::from_secs(20);
/// What each MiB adds to the longest silence of CRIU. Ending a dump that is only slow may end the sandbox: no disk is slower.
const PATIENCE_PER_MIB: Duration = Duration::from_millis(20);

/// CRIU, set up for this server.
#[derive(Debug)]
pub(crate) struct Memory {
    criu: Criu,
    /// What CRIU reads and keeps. A restore finds it at `/run`, in a mount namespace of its own.
    dir: PathBuf,
}

/// Names in the directory; [`process`] says what the last three are for.
const DUMP_FILE: &str = "dump";
const RESTORE_FILE: &str = "restore";
const ROOT: &str = "root";
const DEV: &str = "dev";
const SPARE_PROC: &str = "proc";
const SCRATCH: &str = "scratch";

/// What a restore begins with.
pub(crate) struct RestorePlan<'a> {
    /// The image.
    pub(crate) images: &'a Path,
    /// How big it is.
    pub(crate) size_mib: u32,
    /// First id of the new range, and the id that shall own the user namespace.
    pub(crate) uid_base: u32,
    pub(crate) owner: u32,
    pub(crate) root: OwnedFd,
    pub(crate) dev: &'a OwnedFd,
    /// Directory of the version 2 group to be born in.
    pub(crate) cgroup: &'a Path,
}

impl Memory {
    /// Writes what CRIU reads, in `run_dir`.
    pub(crate) fn open(criu: Criu, run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join("criu");
        for name in [ROOT, DEV, SPARE_PROC] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::write(dir.join(DUMP_FILE), DUMP_OPTIONS)?;
        fs::write(dir.join(RESTORE_FILE), RESTORE_OPTIONS)?;
        fs::write(dir.join(SCRATCH), "")?;
        kernel::learn(&criu, &dir)?;
        Ok(Self { criu, dir })
    }

    /// Removes what [`Memory::open`] wrote.
    pub(crate) fn close(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Writes the memory of the processes under `pid`, so many MiB, into `images`. They stay as they were: frozen in `cgroup`.
    /// `lock` is held by CRIU until it has let go of them.
    pub(crate) fn dump(
        &self,
        pid: i32,
        size_mib: u32,
        owner: u32,
        cgroup: &Path,
        images: &Path,
        lock: BorrowedFd<'_>,
    ) -> Result<(), EngineError> {
        let options = Options {
            pid: Some(pid),
            leave_running: Some(true),
            freeze_cgroup: Some(cgroup.to_string_lossy().into_owned()),
            tcp_skip_in_flight: Some(true),
            external: vec![format!("mnt[/dev]:{DEV_KEY}")],
            log_file: Some("dump.log".to_owned()),
            config_file: Some(self.dir.join(DUMP_FILE).to_string_lossy().into_owned()),
            ..self.options()
        };
        let patience = self.patience(size_mib);
        self.run(Kind::Dump, options, images, Place::Beside { owner, lock }, patience, |_, _, _| Ok(()))
            .map_err(|reason| EngineError::Capture(format!("its memory could not be captured: {reason}")))?;
        Ok(())
    }

    /// How long a dump of so many MiB may be silent.
    pub(crate) fn patience(&self, size_mib: u32) -> Duration {
        self.criu.patience() + PATIENCE_PER_MIB * size_mib
    }

    /// Brings the processes of an image back. `on_namespaces` is called with the new PID 1's pid when its namespaces exist and
    /// nothing runs in them yet. Must be called on a thread inside the sandbox's control groups.
    pub(crate) fn restore(
        &self,
        plan: &RestorePlan<'_>,
        mut on_namespaces: impl FnMut(i32) -> io::Result<()>,
    ) -> Result<i32, EngineError> {
        let prepared = Prepared::new(plan.images, plan.uid_base)
            .map_err(EngineError::kernel("prepare the memory image"))?;
        let patience = self.criu.patience().min(RESTORE_PATIENCE) + PATIENCE_PER_MIB * plan.size_mib;
        let options = Options {
            root: Some(format!("/run/{ROOT}")),
            notify_scripts: Some(true),
            external: vec![format!("mnt[{DEV_KEY}]:/run/{DEV}")],
            log_file: Some("restore.log".to_owned()),
            config_file: Some(format!("/run/{RESTORE_FILE}")),
            ..self.options()
        };
        let place = Place::Sandbox { cgroup: plan.cgroup, root: plan.root.as_fd(), dev: plan.dev.as_fd() };
        let on_notify = |script: &str, criu: i32, pid: i32| match script {
            "pre-restore" => owner::set_effective_user(criu, plan.owner),
            "setup-namespaces" => on_namespaces(pid),
            _ => Ok(()),
        };
        let response = self
            .run(Kind::Restore, options, prepared.path(), place, patience, on_notify)
            .map_err(|reason| EngineError::Restore(format!("its memory could not be restored: {reason}")))?;
        let restored =
            response.restore.ok_or_else(|| EngineError::Restore("CRIU named no process".into()))?;
        Ok(restored.pid)
    }

    fn options(&self) -> Options {
        Options {
            tcp_established: Some(true),
            file_locks: Some(true),
            manage_cgroups_mode: Some(0),
            ghost_limit: Some(GHOST_LIMIT),
            empty_ns: Some(libc::CLONE_NEWNET as u32),
            log_level: Some(2),
            ..Options::default()
        }
    }

    fn run(
        &self,
        kind: Kind,
        options: Options,
        images: &Path,
        place: Place<'_>,
        patience: Duration,
        mut on_notify: impl FnMut(&str, i32, i32) -> io::Result<()>,
    ) -> Result<rpc::Response, String> {
        let log = images.join(options.log_file.as_deref().unwrap_or_default());
        let talk = || -> io::Result<rpc::Response> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(CWD, images, flags, Mode::empty())?;
            let options = Options { images_dir_fd: dir.as_raw_fd(), ..options };
            let mut process = Process::start(&self.criu, &self.dir, place, patience)?;
            let request = Request { kind: kind as i32, options: Some(options), notify_success: None };
            let criu = process.pid();
            let answer = process.ask(&request, |script, pid| on_notify(script, criu, pid));
            match &answer {
                Ok(response) if response.success => {}
                // It may wait for ever for processes that it could not restore. They are ended with their group.
                _ if kind == Kind::Restore => process.kill(),
                // It hangs. What it has stopped it lets go of; whether that goes on well, its agent shows.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => process.kill(),
                _ => {}
            }
            answer.map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("CRIU was silent for {} s", patience.as_secs()),
                ),
                _ => error,
            })
        };
        match talk() {
            Ok(response) if response.success => Ok(response),
            Ok(response) => Err(why(
                &log,
                response.message.unwrap_or_else(|| {
                    format!(
                        "CRIU answered {}",
                        io::Error::from_raw_os_error(response.errno.unwrap_or(libc::EIO))
                    )
                }),
            )),
            Err(error) => Err(why(&log, error.to_string())),
        }
    }
}

/// CRIU's own words are in its log; the protocol rarely carries them.
fn why(log: &Path, otherwise: String) -> String {
    const MAX_LINES: usize = 4;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest))
        .filter(|line| !line.contains("RLIMIT_NOFILE for self"))
        .filter_map(|line| line.split_once("): ").map(|(_, message)| message.trim()))
        .take(MAX_LINES)
        .collect();
    if errors.is_empty() { otherwise } else { errors.join("; ") }
}
