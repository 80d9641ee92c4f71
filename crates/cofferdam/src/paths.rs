//! Where things are on disk, for the server and for commands that look after it.
//! One data directory holds everything durable; layers may be shared between servers.
//! envd is found beside the binary.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The data directory.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDir {
    /// Directory for everything durable.
    #[arg(long, env = "COFFERDAM_DATA_DIR", default_value = "/var/lib/cofferdam", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
}

impl DataDir {
    pub(crate) fn layers(&self) -> PathBuf {
        self.data_dir.join("layers")
    }

    /// The embedded database.
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir.join("cofferdam.db")
    }

    /// Which PostgreSQL database the directory's records are in, if they are in one.
    pub(crate) fn database_id(&self) -> PathBuf {
        self.data_dir.join("database-id")
    }

    /// Written by a running server: its address and pid.
    pub(crate) fn server_note(&self) -> PathBuf {
        self.data_dir.join("server.json")
    }

    pub(crate) fn admin_token(&self) -> PathBuf {
        self.data_dir.join("admin-token")
    }

    /// The key that `quickstart` made, readable by root alone.
    pub(crate) fn quickstart_key(&self) -> PathBuf {
        self.data_dir.join("quickstart-key")
    }

    /// What a server started by `quickstart` says.
    pub(crate) fn log(&self) -> PathBuf {
        self.data_dir.join("server.log")
    }
}

/// Where CRIU is.
#[derive(Debug, Clone, Args)]
pub(crate) struct CriuDirectory {
    /// CRIU 4.2 or newer as an unpacked Debian tree, for memory snapshots. Without it only files can be captured. [default:
    /// tools/criu in the data directory]
    #[arg(long, env = "COFFERDAM_CRIU", value_name = "DIR")]
    criu: Option<PathBuf>,
}

impl CriuDirectory {
    /// As the operator says, or where `cofferdam setup criu` puts it.
    pub(crate) fn path(&self, data: &DataDir) -> PathBuf {
        self.criu.clone().unwrap_or_else(|| data.data_dir.join("tools/criu"))
    }
}

/// Where QEMU and the guests' kernel are.
#[derive(Debug, Clone, Args)]
pub(crate) struct MicrovmDirectory {
    /// QEMU and a guest kernel from Debian packages, for the microVM engine. [default: tools/microvm in the data directory]
    #[arg(long, env = "COFFERDAM_MICROVM", value_name = "DIR")]
    microvm: Option<PathBuf>,
}

impl MicrovmDirectory {
    /// As the operator says, or where `cofferdam setup microvm` puts it.
    pub(crate) fn path(&self, data: &DataDir) -> PathBuf {
        self.microvm.clone().unwrap_or_else(|| data.data_dir.join("tools/microvm"))
    }
}

/// What a running server says of itself in the data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerNote {
    /// Where it answers.
    pub(crate) url: String,
    /// Its process.
    pub(crate) pid: u32,
}

impl ServerNote {
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        Ok(fs::rename(new, path)?)
    }

    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// envd: named by the operator, or beside this binary.
pub(crate) fn envd(named: Option<&Path>) -> Result<PathBuf, Failure> {
    beside("envd", "--envd", named)
}

/// The first program of microVMs' guests, likewise.
pub(crate) fn guest_init(named: Option<&Path>) -> Result<PathBuf, Failure> {
    beside("guest-init", "--guest-init", named)
}

fn beside(name: &str, option: &str, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Failure::new(format!(
        "{name} is not at {}; build it with `cargo xtask build` or name it with {option}",
        beside.display()
    )))
}
