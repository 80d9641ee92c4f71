//! TLS client configurations, the same for registries, webhooks and the SDK: the system's certificate authorities, cryptography
//! of ring, TLS 1.2 and 1.3, no client certificates.

#![forbid(unsafe_code)]

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Returns a configuration that trusts the system's certificate authorities. Blocks for some milliseconds to read them.
///
/// Certificates that cannot be read are left out: a host without any certificate authorities trusts no server.
#[must_use]
pub fn client_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    config_with(roots)
}

/// As [`client_config`], with further authorities that are trusted, PEM. Text without any certificate adds none.
#[must_use]
pub fn client_config_with(authorities: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(authorities.as_bytes()).flatten());
    config_with(roots)
}

/// Returns a configuration that trusts these authorities alone, PEM.
///
/// # Errors
/// The text has no certificate, or one that cannot be read.
pub fn client_config_of(authorities: &str) -> Result<ClientConfig, rustls::Error> {
    let unreadable = || rustls::Error::General("the text has no certificate that can be read".to_owned());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(certificate.map_err(|_| unreadable())?)?;
    }
    if roots.is_empty() { Err(unreadable()) } else { Ok(config_with(roots)) }
}

/// Returns a configuration that trusts no server, for clients that only make plaintext connections. Does not block.
#[must_use]
pub fn client_config_without_roots() -> ClientConfig {
    config_with(RootCertStore::empty())
}

fn config_with(roots: RootCertStore) -> ClientConfig {
    let provider = rustls::crypto::ring::default_provider();
    ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
