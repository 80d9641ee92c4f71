//! The server's own key: made at the first start, readable by root alone, the same ever after.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, key, load_secret_key};

use crate::SshError;

/// Opens the key in a file, which is made if there is none.
///
/// # Errors
/// The file cannot be written, or is no private key of OpenSSH's format.
pub(crate) fn open(path: &Path) -> Result<PrivateKey, SshError> {
    let failed = |reason: String| SshError::HostKey { path: path.display().to_string(), reason };
    if path.exists() {
        return load_secret_key(path, None).map_err(|error| failed(error.to_string()));
    }
    let fresh = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519)
        .map_err(|error| failed(error.to_string()))?;
    let text = fresh.to_openssh(LineEnding::LF).map_err(|error| failed(error.to_string()))?;
    write(path, text.as_bytes()).map_err(|error| failed(error.to_string()))?;
    Ok(fresh)
}

/// Writes a file whole, by rename.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_stays_the_same_and_is_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ssh-host-key");
        let first = open(&path).unwrap();
        assert_eq!(open(&path).unwrap().public_key(), first.public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "nothing").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("ssh-host-key"));
    }
}
