//! [`KeyRing`]: the keys that sign tokens, in a file that the server's user alone can read. A key is published an hour before it signs, and
//! for an hour after it last did, so that everybody who keeps a copy of the public keys has the right one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rsa::pkcs8::EncodePrivateKey;
use rsa::rand_core::{TryCryptoRng, TryRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// Size of a key, bits.
const KEY_BITS: usize = 2048;
/// Age at which a key gets a successor, seconds.
const ROTATE_AFTER: u64 = 30 * 24 * 3600;
/// Longer than copies of the public keys are kept, and than a token is valid, seconds.
const OVERLAP: u64 = 3600;

/// Tokens cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file of the keys cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} has no keys of this server; remove it to have new ones made", path = .0.display())]
    Malformed(PathBuf),
    /// A key cannot be made or used.
    #[error("a key cannot be made or used: {0}")]
    Failed(String),
}

/// The keys, and the file that has them.
pub(crate) struct KeyRing {
    path: PathBuf,
    keys: Mutex<Keys>,
}

/// Keys, oldest first.
#[derive(Default)]
pub(crate) struct Keys {
    keys: Vec<SigningKey>,
    /// The time of the present use, seconds since 1970.
    now: u64,
}

/// A key.
pub(crate) struct SigningKey {
    /// What tokens name it by.
    pub(crate) id: String,
    stored: StoredKey,
    pair: RsaKeyPair,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    /// Seconds since 1970.
    created_at: u64,
    /// PKCS #8, base64.
    key: String,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A public key.
pub(crate) struct PublicKey {
    pub(crate) id: String,
    pub(crate) modulus: Vec<u8>,
    pub(crate) exponent: Vec<u8>,
}

impl KeyRing {
    /// Reads the keys, if there are any.
    pub(crate) fn open(path: &Path) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(path.to_owned());
        let stored: Vec<StoredKey> = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&Zeroizing::new(text)).map_err(|_| malformed())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(KeyError::File { path: path.to_owned(), source }),
        };
        let keys: Result<Vec<_>, _> = stored.into_iter().map(SigningKey::new).collect();
        let keys = Keys { keys: keys.map_err(|_| malformed())?, now: 0 };
        Ok(Self { path: path.to_owned(), keys: Mutex::new(keys) })
    }

    /// Calls a function with the keys of this time, of which there is at least one.
    pub(crate) fn with<T>(&self, now: u64, look: impl FnOnce(&Keys) -> T) -> Result<T, KeyError> {
        let mut keys = self.keys.lock();
        keys.now = now;
        let removed = keys.remove_retired();
        let is_due = keys.keys.last().is_none_or(|newest| newest.stored.created_at + ROTATE_AFTER <= now);
        if is_due {
            keys.keys.push(SigningKey::generate(now)?);
        }
        if is_due || removed {
            self.write(&keys)?;
        }
        Ok(look(&keys))
    }

    fn write(&self, keys: &Keys) -> Result<(), KeyError> {
        let stored: Vec<&StoredKey> = keys.keys.iter().map(|key| &key.stored).collect();
        let text = serde_json::to_vec(&stored).map_err(|error| KeyError::Failed(error.to_string()))?;
        let written =
            fs_atomic::write(&self.path, Zeroizing::new(text), fs_atomic::Options::PRIVATE.sync(true));
        written.map_err(|source| KeyError::File { path: self.path.clone(), source })
    }

    pub(crate) fn public_keys(&self) -> Vec<PublicKey> {
        self.keys.lock().keys.iter().map(SigningKey::public).collect()
    }
}

impl Keys {
    /// Returns the newest key that has been published for long enough; the first one signs at once.
    pub(crate) fn signing(&self) -> &SigningKey {
        &self.keys[self.signing_index()]
    }

    fn signing_index(&self) -> usize {
        let is_known = |key: &SigningKey| key.stored.created_at + OVERLAP <= self.now;
        self.keys.iter().rposition(is_known).unwrap_or(0)
    }

    /// Removes keys whose tokens have all expired. Returns whether there were any.
    fn remove_retired(&mut self) -> bool {
        let Some(signing) = self.keys.get(self.signing_index()) else { return false };
        // It has signed since an overlap after it was made, and the tokens of the one before are valid for another.
        let is_long_ago = signing.stored.created_at + 2 * OVERLAP <= self.now;
        let retired = if is_long_ago { self.signing_index() } else { 0 };
        self.keys.drain(..retired).count() > 0
    }
}

impl SigningKey {
    fn new(stored: StoredKey) -> Result<Self, KeyError> {
        let unusable = |error: &dyn std::fmt::Display| KeyError::Failed(error.to_string());
        let der = Zeroizing::new(STANDARD.decode(stored.key.as_bytes()).map_err(|error| unusable(&error))?);
        let pair = RsaKeyPair::from_pkcs8(&der).map_err(|error| unusable(&error))?;
        let id = hex::encode(&Sha256::digest(pair.public().as_ref())[..16]);
        Ok(Self { id, stored, pair })
    }

    fn generate(now: u64) -> Result<Self, KeyError> {
        let failed = |error: &dyn std::fmt::Display| KeyError::Failed(error.to_string());
        let key = rsa::PrivateKey::new(&mut KernelRandom(SystemRandom::new()), KEY_BITS)
            .map_err(|error| failed(&error))?;
        let der = key.to_pkcs8_der().map_err(|error| failed(&error))?;
        let key = STANDARD.encode(der.as_bytes());
        Self::new(StoredKey { created_at: now, key })
    }

    /// Signs by RS256.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let signed = self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map_err(|error| KeyError::Failed(error.to_string()))?;
        Ok(signature)
    }

    fn public(&self) -> PublicKey {
        let PublicKeyComponents { n: modulus, e: exponent } =
            PublicKeyComponents::<Vec<u8>>::from(self.pair.public());
        PublicKey { id: self.id.clone(), modulus, exponent }
    }
}

/// Randomness of the kernel.
struct KernelRandom(SystemRandom);

/// The kernel gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the kernel has no randomness")]
struct NoRandomness;

impl KernelRandom {
    fn bytes<const N: usize>(&self) -> Result<[u8; N], NoRandomness> {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(bytes)
    }
}

impl TryRng for KernelRandom {
    type Error = NoRandomness;

    fn try_next_u32(&mut self) -> Result<u32, NoRandomness> {
        self.bytes().map(u32::from_ne_bytes)
    }

    fn try_next_u64(&mut self) -> Result<u64, NoRandomness> {
        self.bytes().map(u64::from_ne_bytes)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        self.0.fill(bytes).map_err(|_| NoRandomness)
    }
}

impl TryCryptoRng for KernelRandom {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_published_before_it_signs_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let ring = KeyRing::open(&path).unwrap();
        let at = |now: u64| {
            let signing = ring.with(now, |keys| keys.signing().id.clone()).unwrap();
            (signing, ring.public_keys().into_iter().map(|key| key.id).collect::<Vec<_>>())
        };
        let start = 1_000_000;
        let (first, published) = at(start);
        assert_eq!(published, std::slice::from_ref(&first));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(at(start + ROTATE_AFTER - 1).1.len(), 1);
        let next = start + ROTATE_AFTER;
        let (signing, published) = at(next);
        assert_eq!((signing, published.len()), (first.clone(), 2), "the next key is only published");
        let (second, both) = at(next + OVERLAP);
        assert_eq!((second != first, both), (true, vec![first.clone(), second.clone()]));
        assert_eq!(at(next + 2 * OVERLAP), (second.clone(), vec![second.clone()]));
        let again = KeyRing::open(&path).unwrap();
        assert_eq!(again.public_keys()[0].id, second);
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(KeyRing::open(&path), Err(KeyError::Malformed(_))));
    }
}
