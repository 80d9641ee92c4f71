//! Content digests in OCI's form, `sha256:<64 hex digits>`, and readers that compute them on the way.
//! SHA-256 only, as no other algorithm is in use. The digest of a layer's directory tree is `layers::LayerDigest`.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// `sha256:` and 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The text is not a SHA-256 digest.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not sha256: and 64 lower-case hex digits")]
pub struct NoDigest(String);

impl Digest {
    /// Returns the digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::from_hash(Sha256::new().chain_update(content))
    }

    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(hex::encode(hash.finalize()))
    }

    /// Returns the hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let is_hex = |hex: &&str| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let hex = text.strip_prefix("sha256:").filter(is_hex);
        hex.map(|hex| Self(hex.to_owned())).ok_or_else(|| NoDigest(text.chars().take(100).collect()))
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A reader that hashes all bytes that are read through it.
pub(crate) struct HashReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_hash(self.hash)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
