//! Paths of files and directories that the server and other commands use: in the data directory, of CRIU and QEMU, and of programs
//! beside this one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The option for the data directory, and the paths in it.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDir {
    /// Directory of the server's database, sandboxes, templates and logs.
    #[arg(long, env = "COFFERDAM_DATA_DIR", default_value = "/var/lib/cofferdam", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
}

impl DataDir {
    pub(crate) fn layers(&self) -> PathBuf {
        self.data_dir.join("layers")
    }

    /// The SQLite database.
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir.join("cofferdam.db")
    }

    /// File with the id of the PostgreSQL database that has the directory's records, if one has.
    pub(crate) fn database_id(&self) -> PathBuf {
        self.data_dir.join("database-id")
    }

    /// Key of the SSH server.
    pub(crate) fn ssh_host_key(&self) -> PathBuf {
        self.data_dir.join("ssh-host-key")
    }

    /// File that a running server writes: the address of its SSH server.
    pub(crate) fn ssh_note(&self) -> PathBuf {
        self.data_dir.join("ssh-address")
    }

    /// File that a running server writes: its URL and process id.
    pub(crate) fn server_note(&self) -> PathBuf {
        self.data_dir.join("server.json")
    }

    /// Directory of certificate authorities of our own, with one directory for each domain.
    pub(crate) fn tls(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    pub(crate) fn admin_token(&self) -> PathBuf {
        self.data_dir.join("admin-token")
    }

    /// File of the keys that teams' secrets are encrypted with, readable by root alone.
    pub(crate) fn secrets_key(&self) -> PathBuf {
        self.data_dir.join("secrets.key")
    }

    /// File of the keys that identity tokens of sandboxes are signed with, readable by root alone.
    pub(crate) fn identity_keys(&self) -> PathBuf {
        self.data_dir.join("identity-keys.json")
    }

    /// Directory of the certificate authority for connections to hosts with header rules, readable by root alone.
    pub(crate) fn egress_ca(&self) -> PathBuf {
        self.data_dir.join("egress-ca")
    }

    /// Directory of the connections of sandboxes to hosts.
    pub(crate) fn egress_logs(&self) -> PathBuf {
        self.data_dir.join("egress-logs")
    }

    /// File with the API key that `quickstart` created, readable by root alone.
    pub(crate) fn quickstart_key(&self) -> PathBuf {
        self.data_dir.join("quickstart-key")
    }

    /// Log of a server that `quickstart` started.
    pub(crate) fn log(&self) -> PathBuf {
        self.data_dir.join("server.log")
    }
}

/// The option for CRIU's directory.
#[derive(Debug, Clone, Args)]
pub(crate) struct CriuDirectory {
    /// Directory of CRIU 4.2 or newer, which memory snapshots of containers need; `cofferdam setup criu` fills it. [default: tools/criu
    /// in the data directory]
    #[arg(long, env = "COFFERDAM_CRIU", value_name = "DIR")]
    criu: Option<PathBuf>,
}

impl CriuDirectory {
    /// Returns the directory of the option or the default one.
    pub(crate) fn path(&self, data: &DataDir) -> PathBuf {
        self.criu.clone().unwrap_or_else(|| data.data_dir.join("tools/criu"))
    }
}

/// The option for the directory of QEMU and the guest kernel.
#[derive(Debug, Clone, Args)]
pub(crate) struct MicrovmDirectory {
    /// Directory of QEMU and the guest kernel, which microVMs need; `cofferdam setup microvm` fills it. [default: tools/microvm in the
    /// data directory]
    #[arg(long, env = "COFFERDAM_MICROVM", value_name = "DIR")]
    microvm: Option<PathBuf>,
}

impl MicrovmDirectory {
    /// Returns the directory of the option or the default one.
    pub(crate) fn path(&self, data: &DataDir) -> PathBuf {
        self.microvm.clone().unwrap_or_else(|| data.data_dir.join("tools/microvm"))
    }
}

/// Parses a domain, in lower case. It becomes part of file names.
///
/// # Errors
/// It is no DNS name.
pub(crate) fn domain(text: &str) -> Result<String, String> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() > 190 || !domain.split('.').all(is_label) {
        return Err("write it as a DNS name without a port, such as sandboxes.example.org".to_owned());
    }
    Ok(domain)
}

/// Content of the file that a running server writes to the data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerNote {
    /// URL of its API.
    pub(crate) url: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// The domain by which clients reach it with TLS, with its port if that is not 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
}

impl ServerNote {
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        Ok(fs_atomic::write_json(path, self, fs_atomic::Options::DEFAULT)?)
    }

    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Returns the path of envd: the given one, or beside this program.
///
/// # Errors
/// None is given and there is none beside this program.
pub(crate) fn envd(given: Option<&Path>) -> Result<PathBuf, Failure> {
    beside("envd", "--envd", given)
}

/// Returns the path of guest-init, the first process of guests, likewise.
///
/// # Errors
/// As [`envd`].
pub(crate) fn guest_init(given: Option<&Path>) -> Result<PathBuf, Failure> {
    beside("guest-init", "--guest-init", given)
}

fn beside(name: &str, option: &str, given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name(name);
    // Where packages have them.
    let installed = beside.ancestors().nth(2).unwrap_or(&beside).join("lib/cofferdam").join(name);
    if let Some(found) = [&beside, &installed].into_iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    Err(Failure::new(format!(
        "{name} is not at {}; build it with `cargo xtask build` or name it with {option}",
        beside.display()
    )))
}
