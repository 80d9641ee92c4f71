//! [`Checkpointer`]: memory images by CRIU. Nothing else runs CRIU.
//! The namespaces that CRIU makes belong to the sandbox's owner id, which the kernel charges for them: see `process` and `owner`.
//! CRIU's options and pitfalls are described in `docs/criu.md`.

mod entries;
mod failure;
mod images;
mod kernel;
mod locate;
mod owner;
mod process;
mod release;
mod rpc;
mod view;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::EngineError;
use rustix::thread::CpuSet;

use crate::resources::BorrowedMounts;
use crate::volumes::MountedVolume;
pub(crate) use entries::{adjust_open_files, given_names, has_connections};
use failure::Failure;
use images::RestoreDir;
pub(crate) use images::remove_restore_dirs;
pub use locate::Criu;
use process::{CriuProcess, CriuRole};
use rpc::{Kind, Options, Request};

/// The key that dump and restore give to `/dev`, which CRIU does not make.
const DEV_KEY: &str = "dev";
/// The keys of the mounts in which a sandbox sees its own size. The binds of single files are found by CRIU.
const RESOURCES_KEY: &str = "resources";
const CGROUP_KEY: &str = "cgroup";
/// Options that CRIU's protocol has no field for, as configuration files. Deleted files in the image have no limit of their own: the room
/// for all of them is checked before.
const DUMP_OPTIONS: &str = "images-dir /images\nnetwork-lock skip\nunprivileged\nghost-limit 1048576G\n";
const RESTORE_OPTIONS: &str = "images-dir /images\nnetwork-lock skip\n";
/// No descriptor: the configuration files name the directory of the image.
const NO_DESCRIPTOR: i32 = -1;

/// How long a restore may be silent: a user waits for it, and nothing is lost when it is killed.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(20);
/// What each MiB of memory adds to the time that CRIU may be silent. Longer than any disk needs, because killing a dump that is only
/// slow may kill the sandbox.
const TIMEOUT_PER_MIB: Duration = Duration::from_millis(20);

/// Captures and restores the memory of sandboxes with CRIU.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    criu: Criu,
    /// Directory of the files that CRIU reads and writes. A confined CRIU has it at `/run`.
    dir: PathBuf,
    view: confinement::Root,
    /// Directory of the server's version 2 control group.
    server_group: PathBuf,
}

/// Names in the directory. Configuration of dumps and restores, the mount points of a restore's root and `/dev`, a second `/proc`,
/// and a file that takes the writes to settings which a restore may not change: see [`process`].
const DUMP_FILE: &str = "dump";
const RESTORE_FILE: &str = "restore";
const ROOT: &str = "root";
const DEV: &str = "dev";
const RESOURCES: &str = "resources";
const CGROUP: &str = "cgroup";
const SPARE_PROC: &str = "proc";
const SCRATCH: &str = "scratch";

/// How many volumes an image has at most.
const MAX_VOLUMES: usize = 16;

/// The key of a volume for dumps and restores, which is also the name of its mount point in the directory.
fn volume_name(index: usize) -> String {
    format!("volume{index}")
}

/// What a dump needs.
pub(crate) struct DumpPlan<'a> {
    /// PID 1 of the sandbox.
    pub(crate) pid: i32,
    /// How much there is to write at most, MiB.
    pub(crate) size_mib: u32,
    /// The id that owns the user namespace.
    pub(crate) owner: u32,
    /// Directory of the version 2 control group, in which the processes are frozen.
    pub(crate) cgroup: &'a Path,
    pub(crate) volumes: &'a [MountedVolume],
    /// Directory for the memory image.
    pub(crate) images: &'a Path,
    /// Held by CRIU until it has released the processes.
    pub(crate) lock: BorrowedFd<'a>,
}

/// A moment of a restore in which CRIU waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RestoreStage {
    /// The namespaces exist; the process with this pid is in them. Nothing else does, and nothing runs.
    Namespaces(i32),
    /// All processes and what they have exist; none of them runs.
    Restored,
}

/// What a restore needs.
pub(crate) struct RestorePlan<'a> {
    /// Directory of the memory image.
    pub(crate) images: &'a Path,
    /// Size of the memory image, MiB.
    pub(crate) size_mib: u32,
    /// First id of the new range of user ids.
    pub(crate) uid_base: u32,
    /// The id that will own the user namespace.
    pub(crate) owner: u32,
    pub(crate) root: OwnedFd,
    pub(crate) dev: &'a OwnedFd,
    pub(crate) resources: Option<BorrowedMounts<'a>>,
    /// A mount for each of the image's volumes, in their order.
    pub(crate) volumes: &'a [OwnedFd],
    /// The processors that the restored processes are bound to.
    pub(crate) processors: Option<CpuSet>,
    /// Directory of the sandbox's version 2 control group.
    pub(crate) cgroup: &'a Path,
}

impl Checkpointer {
    /// Creates a directory for CRIU in `run_dir` and has CRIU check the kernel. `server_group` is the version 2 control group that this
    /// process is in.
    ///
    /// # Errors
    /// A file cannot be written, or CRIU does not run.
    pub(crate) fn open(criu: Criu, run_dir: &Path, server_group: PathBuf) -> io::Result<Self> {
        let dir = run_dir.join("criu");
        for name in [ROOT, DEV, RESOURCES, CGROUP, SPARE_PROC] {
            fs::create_dir_all(dir.join(name))?;
        }
        for index in 0..MAX_VOLUMES {
            fs::create_dir_all(dir.join(volume_name(index)))?;
        }
        fs::write(dir.join(DUMP_FILE), DUMP_OPTIONS)?;
        fs::write(dir.join(RESTORE_FILE), RESTORE_OPTIONS)?;
        fs::write(dir.join(SCRATCH), "")?;
        kernel::check_kernel(&criu, &dir)?;
        let view = view::new(&criu, run_dir, &dir)?;
        Ok(Self { criu, dir, view, server_group })
    }

    /// Removes the directory.
    pub(crate) fn close(&self) {
        self.view.remove();
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Dumps the memory of a process and its descendants, which stay frozen. Calls `copy_files` when the image is complete and the files
    /// still have what belongs to it: CRIU gives deleted files a name for as long.
    ///
    /// # Errors
    /// [`EngineError::Uncapturable`] with the program that CRIU refuses, [`EngineError::Capture`] with CRIU's reason if it is not known,
    /// and what `copy_files` returns.
    pub(crate) fn dump(
        &self,
        plan: &DumpPlan<'_>,
        mut copy_files: impl FnMut() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let options = Options {
            pid: Some(plan.pid),
            leave_running: Some(true),
            notify_scripts: Some(true),
            link_remap: Some(true),
            freeze_cgroup: Some(view::CGROUP.to_owned()),
            tcp_skip_in_flight: Some(true),
            external: [("/dev", DEV_KEY), ("/dev/.resources", RESOURCES_KEY), ("/sys/fs/cgroup", CGROUP_KEY)]
                .iter()
                .map(|(mount_point, key)| format!("mnt[{mount_point}]:{key}"))
                .chain(
                    plan.volumes
                        .iter()
                        .enumerate()
                        .map(|(index, volume)| format!("mnt[{}]:{}", volume.mount_point, volume_name(index))),
                )
                .collect(),
            log_file: Some("dump.log".to_owned()),
            config_file: Some(format!("/run/{DUMP_FILE}")),
            ..self.options()
        };
        let timeout = self.timeout(plan.size_mib);
        let role = CriuRole::Dump {
            view: &self.view,
            images: plan.images,
            cgroup: plan.cgroup,
            owner: plan.owner,
            lock: plan.lock,
        };
        // CRIU may write here and nowhere else.
        for path in [plan.images, &plan.cgroup.join("cgroup.freeze")] {
            chown(path, Some(plan.owner), None)
                .map_err(EngineError::kernel("give the dump's files to its owner"))?;
        }
        let mut copied = None;
        let on_notify = |script: &str, _: i32, _: i32| {
            if script != "post-dump" {
                return Ok(());
            }
            let result = copy_files();
            let outcome = result.as_ref().map(|_| ()).map_err(|error| io::Error::other(error.to_string()));
            copied = Some(result);
            outcome
        };
        let dumped = self.run(Kind::Dump, options, plan.images, role, timeout, on_notify);
        match (copied, dumped) {
            (Some(Err(error)), _) => Err(error),
            (_, Err(failure)) => Err(failure.of_dump()),
            (Some(Ok(())), Ok(_)) => Ok(()),
            (None, Ok(_)) => Err(EngineError::Capture("CRIU did not ask for the files".into())),
        }
    }

    /// Returns how long a dump of `size_mib` may be silent.
    pub(crate) fn timeout(&self, size_mib: u32) -> Duration {
        self.criu.timeout() + TIMEOUT_PER_MIB * size_mib
    }

    /// Restores the processes of an image and returns the pid of PID 1. Calls `on_stage` at each stage; an error of it ends the restore.
    /// Must be called on a thread inside the sandbox's control groups.
    ///
    /// # Errors
    /// [`EngineError::Restore`] with CRIU's reason.
    pub(crate) fn restore(
        &self,
        plan: &RestorePlan<'_>,
        mut on_stage: impl FnMut(RestoreStage) -> io::Result<()>,
    ) -> Result<i32, EngineError> {
        let restore_dir = RestoreDir::new(plan.images, plan.uid_base)
            .map_err(EngineError::kernel("prepare the memory image"))?;
        let timeout = self.criu.timeout().min(RESTORE_TIMEOUT) + TIMEOUT_PER_MIB * plan.size_mib;
        let options = Options {
            root: Some(format!("/run/{ROOT}")),
            notify_scripts: Some(true),
            external: [(DEV_KEY, DEV), (RESOURCES_KEY, RESOURCES), (CGROUP_KEY, CGROUP)]
                .iter()
                .map(|(key, name)| format!("mnt[{key}]:/run/{name}"))
                .chain(
                    (0..plan.volumes.len()).map(volume_name).map(|name| format!("mnt[{name}]:/run/{name}")),
                )
                .collect(),
            log_file: Some("restore.log".to_owned()),
            config_file: Some(format!("/run/{RESTORE_FILE}")),
            ..self.options()
        };
        let role = CriuRole::Restore {
            view: &self.view,
            images: restore_dir.path(),
            cgroup: plan.cgroup,
            root: plan.root.as_fd(),
            dev: plan.dev.as_fd(),
            resources: plan.resources,
            volumes: plan.volumes,
            processors: plan.processors,
        };
        let on_notify = |script: &str, criu: i32, pid: i32| match script {
            "pre-restore" => owner::set_effective_user(criu, plan.owner),
            "setup-namespaces" => on_stage(RestoreStage::Namespaces(pid)),
            "post-restore" => on_stage(RestoreStage::Restored),
            "pre-resume" => release::hold(plan.cgroup, criu, &self.server_group),
            _ => Ok(()),
        };
        let response = self
            .run(Kind::Restore, options, restore_dir.path(), role, timeout, on_notify)
            .map_err(|failure| {
                EngineError::Restore(format!("its memory could not be restored: {}", failure.text()))
            })?;
        release::let_run(plan.cgroup).map_err(EngineError::kernel("let the restored processes run"))?;
        let restored =
            response.restore.ok_or_else(|| EngineError::Restore("CRIU named no process".into()))?;
        Ok(restored.pid)
    }

    /// Returns the options that dumps and restores have in common.
    fn options(&self) -> Options {
        Options {
            images_dir_fd: NO_DESCRIPTOR,
            tcp_established: Some(true),
            file_locks: Some(true),
            manage_cgroups_mode: Some(0),
            empty_ns: Some(libc::CLONE_NEWNET as u32),
            log_level: Some(2),
            ..Options::default()
        }
    }

    /// Runs CRIU for one request; returns its response, or why it failed.
    fn run(
        &self,
        kind: Kind,
        options: Options,
        images: &Path,
        role: CriuRole<'_>,
        timeout: Duration,
        mut on_notify: impl FnMut(&str, i32, i32) -> io::Result<()>,
    ) -> Result<rpc::Response, Failure> {
        let log = images.join(options.log_file.as_deref().unwrap_or_default());
        let talk = || -> io::Result<rpc::Response> {
            let mut process = CriuProcess::start(&self.criu, &self.dir, role, timeout)?;
            let request = Request { kind: kind as i32, options: Some(options), notify_success: None };
            let criu = process.pid();
            let response = process.ask(&request, |script, pid| on_notify(script, criu, pid));
            match &response {
                Ok(response) if response.success => {}
                // It may wait forever for processes that it could not restore. They are killed with their control group.
                _ if kind == Kind::Restore => process.kill(),
                // It hangs. The processes that it has stopped are released; whether they still work, envd's answers show.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => process.kill(),
                _ => {}
            }
            response.map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("CRIU was silent for {} s", timeout.as_secs()),
                ),
                _ => error,
            })
        };
        match talk() {
            Ok(response) if response.success => Ok(response),
            Ok(response) => Err(Failure::new(
                &log,
                response.message.unwrap_or_else(|| {
                    format!(
                        "CRIU answered {}",
                        io::Error::from_raw_os_error(response.errno.unwrap_or(libc::EIO))
                    )
                }),
            )),
            Err(error) => Err(Failure::new(&log, error.to_string())),
        }
    }
}
