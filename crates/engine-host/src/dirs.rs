//! Directories of one server on this host, and the name of its kernel objects, which is derived from the data directory's path.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use engine::EngineError;
use sha2::{Digest, Sha256};

/// This server's directory for mounts and sockets; removed when dropped, if it is empty.
#[derive(Debug)]
pub struct RunDir(pub PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns the name of the kernel objects of the server with this data directory: `cofferdam-<fingerprint of the path>`.
///
/// # Errors
/// The directory does not exist.
pub fn instance_name(data_dir: &Path) -> io::Result<String> {
    let path = fs::canonicalize(data_dir)?;
    Ok(format!("cofferdam-{}", fingerprint(path.as_os_str().as_encoded_bytes())))
}

/// Creates a directory if it does not exist and returns its canonical path.
///
/// # Errors
/// It cannot be created.
pub fn make_dir(path: &Path) -> Result<PathBuf, EngineError> {
    fs::create_dir_all(path).and_then(|()| fs::canonicalize(path)).map_err(|error| EngineError::Host {
        what: format!("cannot create the directory {}: {error}", path.display()),
        remedy: "choose another directory with --data-dir or make it writable".into(),
    })
}

/// As [`make_dir`], for a directory that only root can enter. Files of a sandbox's root are owned by the host's root on disk, so a
/// set-user-id program made in a sandbox would give root rights to every user of the host that can reach the file.
///
/// # Errors
/// It cannot be created, or its permissions cannot be set.
pub fn make_private_dir(path: &Path) -> Result<PathBuf, EngineError> {
    let dir = make_dir(path)?;
    let closed = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
    closed.map_err(EngineError::kernel("close a directory to other users"))?;
    Ok(dir)
}

/// Returns the first twelve hexadecimal digits of the SHA-256 of `bytes`.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
