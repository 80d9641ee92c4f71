//! Where the server's certificate comes from: files of the operator's, read again when they change, an authority of our own, or one that speaks
//! ACME.

mod acme;
mod files;
mod own_authority;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::acme::AcmeConfig;
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
    /// An authority that speaks ACME.
    Acme(AcmeConfig),
}

impl CertificateSource {
    /// Opens the source for a domain and its subdomains. Starts the task that renews the certificate.
    ///
    /// # Errors
    /// A file cannot be read or used, or the domain has no wildcard certificates.
    pub(crate) async fn open(
        &self,
        domain: &str,
        data: &DataDir,
    ) -> Result<Arc<CurrentCertificate>, Failure> {
        match self {
            Self::Files { certificate, key } => files::open(certificate, key),
            Self::Acme(config) => acme::open(config, domain, data).await,
            Self::OwnAuthority => OwnAuthority::open(data, domain)?.certificate(),
        }
    }
}

/// Names that a certificate for a domain has: `api.` and sandboxes are one label below it.
fn names(domain: &str) -> [String; 2] {
    [domain.to_owned(), format!("*.{domain}")]
}

/// Makes a directory that only root may enter, if there is none.
fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| unreadable(dir, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}
