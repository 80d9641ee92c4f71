//! Where the server's certificate comes from: files of the operator's, read again when they change, or an authority of our own.

mod files;
mod own_authority;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge::CurrentCertificate;

use crate::failure::Failure;
use crate::paths::DataDir;

pub(crate) use own_authority::OwnAuthority;

/// Where a certificate comes from.
#[derive(Debug, Clone)]
pub(crate) enum CertificateSource {
    /// Files in PEM: the certificate with its intermediate ones, and the key.
    Files { certificate: PathBuf, key: PathBuf },
    /// An authority in the data directory.
    OwnAuthority,
}

impl CertificateSource {
    /// Opens the source for a domain and its subdomains. Starts the task that renews the certificate.
    ///
    /// # Errors
    /// A file cannot be read or used, or the domain has no wildcard certificates.
    pub(crate) fn open(&self, domain: &str, data: &DataDir) -> Result<Arc<CurrentCertificate>, Failure> {
        match self {
            Self::Files { certificate, key } => files::open(certificate, key),
            Self::OwnAuthority => OwnAuthority::open(data, domain)?.certificate(),
        }
    }
}

/// Names that a certificate for a domain has: `api.` and sandboxes are one label below it.
fn names(domain: &str) -> [String; 2] {
    [domain.to_owned(), format!("*.{domain}")]
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}
