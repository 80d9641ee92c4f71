//! The certificate authority of a server, which sandboxes trust, and the certificates that it issues for hosts.
//!
//! Its key never leaves the file and the memory of the server. Each certificate has one name and no wildcard, so that clients do not use
//! a connection for several hosts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use certificates::{CertificateError, Issued, Names};
use time::Duration;
use zeroize::Zeroizing;

/// Name of the authority, as users see it in lists of trusted authorities.
const NAME: &str = "Cofferdam egress";
/// How long the authority is valid.
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// How long a host's certificate is valid.
pub(crate) const LEAF_LIFE: Duration = Duration::days(7);

/// File of the certificate and the key, in the authority's directory.
const CURRENT: &str = "authority.pem";
/// File of the certificate that was in use before the last rotation.
const PREVIOUS: &str = "previous.pem";

/// An authority cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file holds no key with a certificate.
    #[error("{path}: {source}; restore it from a backup, or remove it to have a new authority made", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// No authority can be made.
    #[error(transparent)]
    Make(#[from] CertificateError),
}

/// The authority of a server.
#[derive(Debug)]
pub struct Authority {
    authority: certificates::Authority,
    /// The certificates that sandboxes are to trust: the present one and, after a rotation, the one before it.
    trusted: String,
}

impl Authority {
    /// Opens the authority in this directory, or makes it at the first start. Only the server's user can read the directory.
    ///
    /// # Errors
    /// A file cannot be read or written, or is damaged.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(CURRENT);
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => Zeroizing::new(pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(dir)?,
            Err(source) => return Err(AuthorityError::File { path, source }),
        };
        let (certificate, key) = split(&pem);
        let authority = certificates::Authority::from_pem(certificate, key)
            .map_err(|source| AuthorityError::Damaged { path, source })?;
        let previous = fs::read_to_string(dir.join(PREVIOUS)).unwrap_or_default();
        let trusted = format!("{}\n{}", certificate.trim(), previous.trim()).trim().to_owned();
        Ok(Self { authority, trusted })
    }

    /// Returns the certificates that sandboxes are to trust, PEM.
    #[must_use]
    pub fn trusted(&self) -> &str {
        &self.trusted
    }

    /// Issues a certificate for a host.
    pub(crate) fn issue(&self, host: &str) -> Result<Issued, CertificateError> {
        self.authority.issue(&[host], LEAF_LIFE)
    }
}

/// Replaces the authority in this directory, for the next start of the server. Sandboxes go on to trust the one before it as well.
///
/// # Errors
/// A file cannot be read or written.
pub fn rotate(dir: &Path) -> Result<(), AuthorityError> {
    let path = dir.join(CURRENT);
    match fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(pem) => write(&dir.join(PREVIOUS), split(&pem).0)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(AuthorityError::File { path, source }),
    }
    make(dir).map(drop)
}

/// Makes an authority; returns its certificate and key.
fn make(dir: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    let authority = certificates::Authority::create(NAME, Names::Any, AUTHORITY_LIFE)?;
    let key = Zeroizing::new(authority.key_pem());
    let pem = Zeroizing::new(format!("{}\n{}", authority.certificate_pem().trim(), *key));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| AuthorityError::File { path: dir.to_owned(), source })?;
    write(&dir.join(CURRENT), &pem)?;
    Ok(pem)
}

/// Writes a file that only the server's user can read.
fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    let written = fs_atomic::write(path, text, fs_atomic::Options::PRIVATE.sync(true));
    written.map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

/// Splits a file into its certificate and its key.
fn split(pem: &str) -> (&str, &str) {
    pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").unwrap_or(pem.len()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_only_the_server_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("egress-ca");
        let first = Authority::open(&dir).unwrap();
        assert_eq!(Authority::open(&dir).unwrap().trusted(), first.trusted());
        assert!(!first.trusted().contains("PRIVATE"));
        let mode = fs::metadata(dir.join(CURRENT)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.join(CURRENT), "nonsense").unwrap();
        assert!(Authority::open(&dir).unwrap_err().to_string().contains("to have a new authority made"));
    }

    #[test]
    fn after_a_rotation_both_are_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        rotate(dir.path()).unwrap();
        let second = Authority::open(dir.path()).unwrap();
        assert!(second.trusted().ends_with(first.trusted()));
        assert_eq!(second.trusted().matches("BEGIN").count(), 2);
        rotate(dir.path()).unwrap();
        let third = Authority::open(dir.path()).unwrap();
        assert_eq!(third.trusted().matches("BEGIN").count(), 2);
        assert!(!third.trusted().ends_with(first.trusted()));
    }
}
