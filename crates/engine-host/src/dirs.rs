//! Directories and names of one server on this machine, and the checks that every engine begins with.
//! What is refused is refused with its remedy.
//! The name of a data directory's kernel objects is derived from its path.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::EngineError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

/// This server's directory for mounts; goes with it if nothing is left in there.
#[derive(Debug)]
pub struct RunDir(pub PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The name that this data directory's kernel objects carry: the directories of its control groups and mounts.
///
/// # Errors
/// The directory does not exist.
pub fn instance_name(data_dir: &Path) -> io::Result<String> {
    let path = fs::canonicalize(data_dir)?;
    Ok(format!("cofferdam-{}", fingerprint(path.as_os_str().as_encoded_bytes())))
}

/// Makes a directory and returns its real path.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(path: &Path) -> Result<PathBuf, EngineError> {
    fs::create_dir_all(path).and_then(|()| fs::canonicalize(path)).map_err(|error| EngineError::Host {
        what: format!("{} cannot be made: {error}", path.display()),
        remedy: "choose another directory with --data-dir or make it writable".into(),
    })
}

/// A directory that only root can enter. On disk a sandbox's root is the host's root, so a set-user-id program that a
/// sandbox makes would be one for every user of the host who could reach the file.
///
/// # Errors
/// It cannot be made or closed.
pub fn make_private_dir(path: &Path) -> Result<PathBuf, EngineError> {
    let dir = make_dir(path)?;
    let closed = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
    closed.map_err(EngineError::kernel("close a directory to other users"))?;
    Ok(dir)
}

/// Refuses a kernel older than `minimum`.
///
/// # Errors
/// It is older; `what` names who needs more.
pub fn check_kernel(what: &str, minimum: (u32, u32)) -> Result<(), EngineError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= minimum {
        return Ok(());
    }
    let (major, minor) = minimum;
    Err(EngineError::Host {
        what: format!("{what} needs Linux {major}.{minor}; this is {release}"),
        remedy: "boot a newer kernel (Debian: the one from backports)".into(),
    })
}

/// Refuses anyone but root.
///
/// # Errors
/// This process is not root's; `what` names what needs it.
pub fn check_root(what: &str) -> Result<(), EngineError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(EngineError::Host {
        what: format!("{what}, which needs root"),
        remedy: "start the server as root; sandboxes never run as the host's root".into(),
    })
}

/// Lets this process have as many descriptors as it may: a sandbox costs the server about ten.
///
/// # Errors
/// The kernel refuses.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

/// Twelve hexadecimal digits of the SHA-256 of `bytes`.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
