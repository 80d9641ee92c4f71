//! A certificate from an authority that speaks ACME. It is obtained at the first start, kept in the data directory, and renewed when a third of
//! its life is left.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use acme::{AcmeAccount, AcmeConfig, AcmeError};
use edge::{CurrentCertificate, tls_provider};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::unreadable;
use crate::failure::Failure;
use crate::paths::DataDir;

/// Time from a failed renewal to the next attempt.
const RETRY: Duration = Duration::from_secs(3600);
/// Maximum time between looks at the clock, which may be set.
const MAX_SLEEP: Duration = Duration::from_secs(12 * 3600);

/// What belongs to one domain.
struct Acme {
    config: AcmeConfig,
    domain: String,
    dir: PathBuf,
}

/// Returns the stored certificate of a domain, or obtains one. Starts the task that renews it.
///
/// # Errors
/// There is no certificate yet, and none is to be had.
pub(super) async fn open(
    config: &AcmeConfig,
    domain: &str,
    data: &DataDir,
) -> Result<Arc<CurrentCertificate>, Failure> {
    let dir = data.tls().join(domain);
    super::make_dir(&dir)?;
    let acme = Acme { config: config.clone(), domain: domain.to_owned(), dir };
    let pem = match fs::read(acme.certificate()) {
        Ok(pem) if remaining(&pem).is_some_and(|left| !left.is_zero()) => pem,
        _ => {
            info!(domain, directory = config.directory, "asking for a TLS certificate by ACME");
            acme.obtain().await?
        }
    };
    let current = CurrentCertificate::new(acme.parse(&pem)?);
    tokio::spawn(acme.renew(pem, Arc::clone(&current)));
    Ok(current)
}

impl Acme {
    /// File with the certificate, its intermediate ones and the key.
    fn certificate(&self) -> PathBuf {
        self.dir.join("acme.pem")
    }

    /// Obtains a certificate and stores it.
    async fn obtain(&self) -> Result<Vec<u8>, Failure> {
        let path = self.dir.join("acme-account.json");
        let stored = fs::read_to_string(&path).ok();
        let failed = |error: AcmeError| Failure::new(with_sources(&error));
        let (account, credentials) =
            AcmeAccount::open(self.config.clone(), stored.as_deref()).await.map_err(failed)?;
        if let Some(credentials) = credentials {
            fs_atomic::write(&path, &credentials, fs_atomic::Options::PRIVATE)?;
        }
        let obtained = account.obtain(&self.domain).await.map_err(failed)?;
        let pem = format!("{}\n{}", obtained.chain.trim_end(), obtained.key);
        let path = self.certificate();
        fs_atomic::write(&path, &pem, fs_atomic::Options::PRIVATE)
            .map_err(|error| unreadable(&path, &error))?;
        Ok(pem.into_bytes())
    }

    fn parse(&self, pem: &[u8]) -> Result<CertifiedKey, Failure> {
        certificates::certified_key(pem, pem, &tls_provider())
            .map_err(|error| Failure::new(format!("{}: {error}", self.certificate().display())))
    }

    /// Renews the certificate in good time, again and again.
    async fn renew(self, mut pem: Vec<u8>, current: Arc<CurrentCertificate>) {
        loop {
            let due = remaining(&pem).unwrap_or_default();
            if !due.is_zero() {
                tokio::time::sleep(due.min(MAX_SLEEP)).await;
                continue;
            }
            match self.obtain().await.and_then(|new| Ok((self.parse(&new)?, new))) {
                Ok((certificate, new)) => {
                    current.replace(certificate);
                    pem = new;
                    info!(domain = self.domain, "a new TLS certificate is in use");
                }
                Err(failure) => {
                    warn!(domain = self.domain, %failure, "failed to renew the TLS certificate; trying again in an hour");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Returns an error's text with those of its sources: that of a failed connection says nothing itself.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

/// Returns the time until a certificate should be renewed: zero when less than a third of its life is left. `None` for what is no certificate.
fn remaining(pem: &[u8]) -> Option<Duration> {
    let (begin, end) = certificates::validity(pem).ok()?;
    let due = end - (end - begin) / 3;
    Some(Duration::try_from(due - OffsetDateTime::now_utc()).unwrap_or_default())
}
