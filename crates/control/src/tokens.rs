//! [`Tokens`]: the tokens of sandboxes, derived from the server's seed and the sandbox's id. They are not stored, stay the same for a
//! sandbox's whole life, and differ between forks.

use hmac::{Hmac, KeyInit, Mac};
use ids::{SandboxId, TeamId, VolumeId};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Length of the seed, bytes.
pub(crate) const SEED_LEN: usize = 32;

/// Derives tokens from the server's seed.
pub(crate) struct Tokens {
    seed: Vec<u8>,
}

impl Tokens {
    pub(crate) fn new(seed: Vec<u8>) -> Self {
        Self { seed }
    }

    /// Returns the token that the edge expects in `X-Access-Token` of requests to envd. It never enters the sandbox.
    pub(crate) fn envd(&self, id: &SandboxId) -> String {
        self.sign(&[id.as_str()])
    }

    /// Returns the token that envd expects of programs inside its sandbox. It is worth nothing outside.
    pub(crate) fn inner(&self, id: &SandboxId) -> String {
        self.sign(&["sandbox-inner-", id.as_str()])
    }

    /// Returns the token that a sandbox without public traffic expects in `e2b-traffic-access-token`.
    pub(crate) fn traffic(&self, id: &SandboxId) -> String {
        self.sign(&["sandbox-traffic-", id.as_str()])
    }

    /// Returns the signature of the link for one upload of an archive; `expires` is in seconds since 1970.
    pub(crate) fn upload(&self, team: TeamId, hash: &str, upload: &str, expires: i64) -> String {
        let (team, expires) = (team.to_string(), expires.to_string());
        self.sign(&["build-files-", &team, "-", hash, "-", upload, "-", &expires])
    }

    /// Returns the signature of a token for a volume's content; `expires` is in seconds since 1970.
    pub(crate) fn volume(&self, id: VolumeId, expires: i64, key: &str) -> String {
        self.sign(&["volume-", &id.to_string(), "-", &expires.to_string(), "-", key])
    }

    fn sign(&self, parts: &[&str]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.seed).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part.as_bytes());
        }
        hex::encode(mac.finalize().into_bytes())
    }
}

/// Returns whether two secrets are equal, in time that does not depend on where they differ.
#[must_use]
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hex_hmacs_of_the_id() {
        let tokens = Tokens::new(b"key".to_vec());
        let id: SandboxId = "iabc".parse().unwrap();
        assert_eq!(tokens.envd(&id).len(), 64);
        assert_ne!(tokens.envd(&id), tokens.traffic(&id));
        assert_ne!(tokens.envd(&id), tokens.inner(&id));
        assert_eq!(tokens.envd(&id), Tokens::new(b"key".to_vec()).envd(&id));
        // HMAC-SHA256("key", "The quick brown fox jumps over the lazy dog"), a published vector.
        let published = "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
        assert_eq!(tokens.sign(&["The quick brown fox jumps over the lazy dog"]), published);
    }
}
