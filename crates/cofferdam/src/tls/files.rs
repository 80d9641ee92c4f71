//! A certificate and a key in files, which something else renews.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edge::{CurrentCertificate, tls_provider};
use tracing::{info, warn};

use super::unreadable;
use crate::failure::Failure;

/// How often the files are read. Their content is compared, because notifications of the kernel miss files that are reached through
/// replaced links or network file systems, which is how certificates are renewed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Contents of the certificate's and the key's file.
type Contents = [Vec<u8>; 2];

/// Reads the certificate and key, and starts the task that reads them again when they have changed.
///
/// # Errors
/// A file cannot be read, or they cannot be used together.
pub(super) fn open(certificate: &Path, key: &Path) -> Result<Arc<CurrentCertificate>, Failure> {
    let paths = [certificate.to_owned(), key.to_owned()];
    let mut contents = Contents::default();
    for (path, content) in paths.iter().zip(&mut contents) {
        *content = fs::read(path).map_err(|error| unreadable(path, &error))?;
    }
    let current = CurrentCertificate::new(parse(&contents).map_err(|error| {
        Failure::new(format!("--tls-cert {}, --tls-key {}: {error}", certificate.display(), key.display()))
    })?);
    tokio::spawn(follow(paths, contents, Arc::clone(&current)));
    Ok(current)
}

fn parse(contents: &Contents) -> Result<rustls::sign::CertifiedKey, certificates::CertificateError> {
    certificates::certified_key(&contents[0], &contents[1], &tls_provider())
}

/// Replaces the certificate whenever the files have other, usable contents. Of a pair that is being replaced one file may be new already:
/// such contents are reported once, and the certificate from before stays.
async fn follow(paths: [PathBuf; 2], mut known: Contents, current: Arc<CurrentCertificate>) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let [certificate, key] = &paths;
        let (Ok(certificate), Ok(key)) = (tokio::fs::read(certificate).await, tokio::fs::read(key).await)
        else {
            continue;
        };
        let contents = [certificate, key];
        if contents == known {
            continue;
        }
        match parse(&contents) {
            Ok(certificate) => {
                current.replace(certificate);
                info!(file = %paths[0].display(), "a new TLS certificate is in use");
            }
            Err(error) => warn!(
                file = %paths[0].display(), %error,
                "the files of the TLS certificate have changed and cannot be used; the earlier certificate stays"
            ),
        }
        known = contents;
    }
}
