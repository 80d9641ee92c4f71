//! Server configurations by host: a certificate for the host, and the protocols that the client offers.

use std::collections::HashMap;
use std::sync::Arc;

use certificates::{CertificateError, Issued};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use time::OffsetDateTime;

use crate::authority::{Authority, LEAF_LIFE};

/// Maximum number of certificates that are kept. Beyond it the one that was used longest ago is dropped; making one takes a fraction of a
/// millisecond.
const MAX_LEAVES: usize = 1024;

/// Protocol names of TLS (ALPN).
pub(crate) const H2: &[u8] = b"h2";
pub(crate) const HTTP1: &[u8] = b"http/1.1";

/// Server configurations of hosts.
#[derive(Debug)]
pub(crate) struct Leaves {
    authority: Arc<Authority>,
    kept: Mutex<Kept>,
    /// Makes session tickets, which the server need not remember.
    tickets: Arc<dyn rustls::server::ProducesTickets>,
}

#[derive(Debug, Default)]
struct Kept {
    by_host: HashMap<String, KeptLeaf>,
    uses: u64,
}

#[derive(Debug)]
struct KeptLeaf {
    config: Arc<ServerConfig>,
    renew_at: OffsetDateTime,
    used: u64,
}

impl Leaves {
    pub(crate) fn new(authority: Arc<Authority>) -> Result<Self, rustls::Error> {
        Ok(Self { authority, kept: Mutex::default(), tickets: rustls::crypto::ring::Ticketer::new()? })
    }

    /// Returns the configuration for a host.
    ///
    /// # Errors
    /// No certificate can be made for this name.
    pub(crate) fn config(&self, host: &str) -> Result<Arc<ServerConfig>, CertificateError> {
        let now = OffsetDateTime::now_utc();
        {
            let mut kept = self.kept.lock();
            kept.uses += 1;
            let uses = kept.uses;
            if let Some(leaf) = kept.by_host.get_mut(host).filter(|leaf| now < leaf.renew_at) {
                leaf.used = uses;
                return Ok(Arc::clone(&leaf.config));
            }
        }
        let config = Arc::new(self.server_config(&self.authority.issue(host)?)?);
        let renew_at = now + LEAF_LIFE / 2;
        let mut kept = self.kept.lock();
        if kept.by_host.len() >= MAX_LEAVES {
            let oldest = kept.by_host.iter().min_by_key(|(_, leaf)| leaf.used).map(|(host, _)| host.clone());
            oldest.and_then(|host| kept.by_host.remove(&host));
        }
        let used = kept.uses;
        kept.by_host.insert(host.to_owned(), KeptLeaf { config: Arc::clone(&config), renew_at, used });
        Ok(config)
    }

    fn server_config(&self, leaf: &Issued) -> Result<ServerConfig, CertificateError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = leaf.certified_key(&provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.tickets);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_up_to_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let leaves = Leaves::new(Arc::new(Authority::open(dir.path()).unwrap())).unwrap();
        let first = leaves.config("h0.example").unwrap();
        for i in 0..MAX_LEAVES {
            assert!(Arc::ptr_eq(&leaves.config("h0.example").unwrap(), &first));
            leaves.config(&format!("h{i}.example")).unwrap();
        }
        leaves.config("one.more.example").unwrap();
        let kept = leaves.kept.lock();
        assert_eq!(kept.by_host.len(), MAX_LEAVES);
        assert!(kept.by_host.contains_key("h0.example"));
        assert!(!kept.by_host.contains_key("h1.example"));
    }
}
