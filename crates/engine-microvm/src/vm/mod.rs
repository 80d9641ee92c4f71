//! One running QEMU as the engine holds it: its process is confined by `launch`, driven over `qmp`, and its guest is spoken to over
//! `agent`. `command` says what machine it is.
//! Both sockets are made by us and listened on by QEMU, so a later server can connect again.

pub(crate) mod command_line;
mod guest_agent;
mod launch;
mod qmp;

use std::fs;
use std::io::{self, Read, Seek, Write};
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

/// Time for QEMU to answer after its start.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A directory with the sockets of one machine.
#[derive(Debug, Clone)]
pub(crate) struct VmSockets(PathBuf);

impl VmSockets {
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Makes the directory and listens on both: monitor, agent. What is there is of a sandbox that has ended.
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

/// The two conversations with a running machine.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) monitor: Qmp,
    pub(crate) guest_agent: GuestAgent,
}

impl Vm {
    /// Takes them up, at its start or after another server has left it.
    ///
    /// # Errors
    /// It has ended or does not answer.
    pub(crate) async fn connect(sockets: &VmSockets) -> Result<Self, EngineError> {
        let open = async {
            let monitor = Qmp::open(UnixStream::connect(sockets.0.join(MONITOR)).await?).await?;
            let guest_agent = GuestAgent::open(UnixStream::connect(sockets.0.join(AGENT)).await?).await?;
            io::Result::Ok(Self { monitor, guest_agent })
        };
        match tokio::time::timeout(START_PATIENCE, open).await {
            Ok(answer) => answer.map_err(EngineError::kernel("speak with the machine monitor")),
            Err(_) => Err(EngineError::Timeout("the start of the machine monitor")),
        }
    }

    /// Leaves both to a later server.
    pub(crate) async fn close(&self) {
        self.monitor.close().await;
        self.guest_agent.close().await;
    }
}

/// What QEMU complains about: a file in memory that cannot grow, because a guest can make it complain for ever.
#[derive(Debug)]
pub(crate) struct QemuLog(fs::File);

impl QemuLog {
    const MOST: u64 = 16 << 10;

    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd_create("qemu", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, Self::MOST)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(Self(file.into()))
    }

    /// For QEMU's standard error.
    pub(crate) fn writer(&self) -> io::Result<fs::File> {
        self.0.try_clone()
    }

    /// What is in it, in one line.
    pub(crate) fn text(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.0.rewind();
        let _ = (&self.0).take(Self::MOST).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
        lines.join("; ")
    }
}

/// A file with a hole of this size and nothing else: what a booting guest's memory begins with.
pub(crate) fn create_sparse_file(path: &Path, size: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.set_len(size)?;
    file.flush()?;
    fs::rename(new, path)
}
