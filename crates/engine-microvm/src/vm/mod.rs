//! One running QEMU process: `launch` starts and confines it, `command_line` describes the VM,
//! `qmp` controls it, and `guest_agent` speaks with the first process in the guest.
//!
//! The engine creates both sockets and QEMU listens on them, so a later server can connect again.

pub(crate) mod command_line;
mod guest_agent;
mod launch;
mod qmp;

use std::fs;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::EngineError;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::net::UnixStream;

use guest_agent::GuestAgent;
pub(crate) use launch::{BindMount, QemuLaunch, spawn_qemu};
use qmp::Qmp;

/// Time limit for QEMU to answer after its start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The directory with the sockets of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmSockets(PathBuf);

impl VmSockets {
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Creates the directory and returns listening sockets for the monitor and the guest agent.
    /// Removes what an ended sandbox left over.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub(crate) fn listen(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        self.remove();
        fs::create_dir(&self.0)?;
        let listen = |name| UnixListener::bind(self.0.join(name)).map(OwnedFd::from);
        Ok((listen(MONITOR)?, listen(AGENT)?))
    }

    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MONITOR: &str = "monitor";
const AGENT: &str = "agent";

/// Connections to the monitor and the guest agent of a running VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) monitor: Qmp,
    pub(crate) guest_agent: GuestAgent,
}

impl Vm {
    /// Connects to both, after the start or in place of an earlier server.
    ///
    /// # Errors
    /// QEMU has ended or does not answer in time.
    pub(crate) async fn connect(sockets: &VmSockets) -> Result<Self, EngineError> {
        let open = async {
            let monitor = Qmp::open(UnixStream::connect(sockets.0.join(MONITOR)).await?).await?;
            let guest_agent = GuestAgent::open(UnixStream::connect(sockets.0.join(AGENT)).await?).await?;
            io::Result::Ok(Self { monitor, guest_agent })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
            Ok(answer) => answer.map_err(EngineError::kernel("connect to QEMU")),
            Err(_) => Err(EngineError::Timeout("waiting for QEMU to start")),
        }
    }

    /// Closes both, so that a later server can connect.
    pub(crate) async fn close(&self) {
        self.monitor.close().await;
        self.guest_agent.close().await;
    }
}

/// What QEMU writes to its standard error: a file in memory that cannot grow, because a guest can
/// make QEMU log without end.
#[derive(Debug)]
pub(crate) struct QemuLog(fs::File);

impl QemuLog {
    const MAX_BYTES: u64 = 16 << 10;

    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd_create("qemu", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, Self::MAX_BYTES)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(Self(file.into()))
    }

    /// A descriptor for QEMU's standard error.
    pub(crate) fn writer(&self) -> io::Result<fs::File> {
        self.0.try_clone()
    }

    /// Returns the log as one line.
    pub(crate) fn text(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.0.rewind();
        let _ = (&self.0).take(Self::MAX_BYTES).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
        lines.join("; ")
    }
}

/// Creates a sparse file of this size, in place of an earlier one.
pub(crate) fn create_sparse_file(path: &Path, size: u64) -> io::Result<()> {
    fs_atomic::write_with(path, fs_atomic::Options::DEFAULT, |file| file.set_len(size))
}
