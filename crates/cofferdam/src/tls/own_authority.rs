//! [`OwnAuthority`]: a certificate authority for one domain, in the data directory. It is made once, since clients must be told to trust
//! it, and can sign for nothing but its domain. Certificates of the server are made at its start and in good time before they expire.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use certificates::{Authority, CertificateError, Names};
use edge::{CurrentCertificate, tls_provider};
use time::Duration;
use tracing::{info, warn};

use super::{names, unreadable};
use crate::failure::Failure;
use crate::paths::DataDir;

const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
const CERTIFICATE_LIFETIME: Duration = Duration::days(90);
/// How often the server's certificate is replaced.
const RENEWAL: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// The authority of a domain.
pub(crate) struct OwnAuthority {
    authority: Authority,
    domain: String,
}

impl OwnAuthority {
    /// Opens the authority of a domain; makes it at the first time.
    ///
    /// # Errors
    /// Its files cannot be read or written, or the domain has no wildcard certificates.
    pub(crate) fn open(data: &DataDir, domain: &str) -> Result<Self, Failure> {
        if !domain.contains('.') {
            return Err(Failure::new(format!(
                "clients accept no certificate for *.{domain}; choose a domain of at least two labels with --domain, such as \
                 sandboxes.internal"
            )));
        }
        let dir = data.tls().join(domain);
        let [certificate, key] = [certificate_file(data, domain), dir.join("authority.key")];
        let authority = match (fs::read_to_string(&certificate), fs::read_to_string(&key)) {
            (Ok(certificate_pem), Ok(key)) => Authority::from_pem(&certificate_pem, &key)
                .map_err(|error| Failure::new(format!("{}: {error}", certificate.display())))?,
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => {
                super::make_dir(&dir)?;
                let authority = Authority::create(
                    &format!("Cofferdam authority of {domain}"),
                    Names::Domain(domain),
                    AUTHORITY_LIFETIME,
                )
                .map_err(|error| Failure::new(format!("--domain {domain}: {error}")))?;
                fs_atomic::write(&key, authority.key_pem(), fs_atomic::Options::PRIVATE)?;
                // Last: without it the authority is made again.
                fs_atomic::write(&certificate, authority.certificate_pem(), fs_atomic::Options::DEFAULT)?;
                authority
            }
            (Err(error), _) => return Err(unreadable(&certificate, &error)),
            (_, Err(error)) => return Err(unreadable(&key, &error)),
        };
        Ok(Self { authority, domain: domain.to_owned() })
    }

    /// Returns the authority's certificate, which clients must trust.
    pub(crate) fn pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// Makes a certificate for the domain and its subdomains, and starts the task that renews it.
    ///
    /// # Errors
    /// The domain is no DNS name.
    pub(super) fn certificate(self) -> Result<Arc<CurrentCertificate>, Failure> {
        let first =
            self.issue().map_err(|error| Failure::new(format!("--domain {}: {error}", self.domain)))?;
        let current = CurrentCertificate::new(first);
        let renewed = Arc::clone(&current);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                match self.issue() {
                    Ok(certificate) => renewed.replace(certificate),
                    Err(error) => warn!(%error, "failed to renew the TLS certificate"),
                }
                info!(domain = self.domain, "a new TLS certificate is in use");
            }
        });
        Ok(current)
    }

    fn issue(&self) -> Result<rustls::sign::CertifiedKey, CertificateError> {
        let names = names(&self.domain);
        let names = [names[0].as_str(), names[1].as_str()];
        self.authority.issue(&names, CERTIFICATE_LIFETIME)?.certified_key(&tls_provider())
    }
}

/// Returns the path of the certificate of a domain's authority.
pub(super) fn certificate_file(data: &DataDir, domain: &str) -> PathBuf {
    data.tls().join(domain).join("authority.crt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_for_each_domain() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir { data_dir: dir.path().to_owned() };
        let open =
            |domain: &str| OwnAuthority::open(&data, domain).map(|authority| authority.pem().to_owned());
        let made = open("sandboxes.internal").unwrap();
        assert_eq!(open("sandboxes.internal").unwrap(), made);
        assert_ne!(open("other.internal").unwrap(), made);
        assert!(open("localhost").unwrap_err().to_string().contains("at least two labels"));
        fs::write(data.tls().join("other.internal/authority.key"), "damaged").unwrap();
        assert!(open("other.internal").unwrap_err().to_string().contains("authority.crt"));
    }
}
