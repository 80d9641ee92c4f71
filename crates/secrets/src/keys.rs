//! [`Keys`]: the keys that secrets are encrypted with, and the encryption (ChaCha20-Poly1305 of ring).
//!
//! What is stored begins with the first bytes of the key's hash, by which the key is found again, and a random nonce.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Length of a key, bytes.
const KEY_LEN: usize = 32;
/// Length of what a key is known by, bytes.
const MARK_LEN: usize = 8;

/// Secrets cannot be encrypted or decrypted.
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
    #[error("{path} has no keys of 64 hexadecimal digits, one on each line", path = .0.display())]
    Malformed(PathBuf),
    /// A secret was encrypted with a key that the file does not have.
    #[error("the key that the secret was encrypted with is missing")]
    Missing,
    /// The stored bytes were changed.
    #[error("the encrypted secret is damaged")]
    Damaged,
}

/// Keys of secrets: the first one encrypts, all decrypt.
pub struct Keys(Vec<Key>);

struct Key {
    mark: [u8; MARK_LEN],
    cipher: LessSafeKey,
}

impl Keys {
    /// Reads the keys from a file: 64 hexadecimal digits on each line, the newest key first. Makes the file with one key if there is none;
    /// only the server's user can read it.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds something else.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fresh = Zeroizing::new(format!("{}\n", ids::random_hex::<KEY_LEN>()));
                let options = fs_atomic::Options::PRIVATE.sync(true);
                fs_atomic::write(path, fresh.as_bytes(), options).map_err(failed)?;
                fresh
            }
            Err(source) => return Err(failed(source)),
        };
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(parse);
        let keys: Option<Vec<Key>> = keys.collect();
        keys.filter(|keys| !keys.is_empty()).map(Self).ok_or_else(|| KeyError::Malformed(path.to_owned()))
    }

    /// Whether the newest key encrypted this.
    pub(crate) fn is_current(&self, sealed: &[u8]) -> bool {
        self.0.first().is_some_and(|key| sealed.starts_with(&key.mark))
    }

    /// Encrypts a value, bound to a context.
    pub(crate) fn seal(&self, value: &[u8], context: &str) -> Result<Vec<u8>, KeyError> {
        let key = self.0.first().ok_or(KeyError::Missing)?;
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the kernel's random source answers on every supported system");
        let mut bytes = Zeroizing::new(Vec::with_capacity(value.len() + CHACHA20_POLY1305.tag_len()));
        bytes.extend_from_slice(value);
        let aad = Aad::from(context.as_bytes());
        let tag = key
            .cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .map_err(|_| KeyError::Damaged)?;
        Ok([&key.mark[..], &nonce, &bytes, tag.as_ref()].concat())
    }

    /// Decrypts what [`Keys::seal`] returned for this context.
    pub(crate) fn open_sealed(&self, sealed: &[u8], context: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (mark, rest) = sealed.split_at_checked(MARK_LEN).ok_or(KeyError::Damaged)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(KeyError::Damaged)?;
        let key = self.0.iter().find(|key| key.mark == mark).ok_or(KeyError::Missing)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyError::Damaged)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(context.as_bytes());
        let length = key.cipher.open_in_place(nonce, aad, &mut bytes).map_err(|_| KeyError::Damaged)?.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

fn parse(line: &str) -> Option<Key> {
    let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
    hex::decode_to_slice(line, &mut bytes[..]).ok()?;
    let digest = Sha256::digest(&bytes[..]);
    let mut mark = [0u8; MARK_LEN];
    mark.copy_from_slice(&digest[..MARK_LEN]);
    let cipher = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes[..]).ok()?);
    Some(Key { mark, cipher })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn values_are_bound_to_their_context_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(&dir.path().join("a")).unwrap();
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let sealed = keys.seal(b"value", "one").unwrap();
        assert_ne!(sealed, keys.seal(b"value", "one").unwrap());
        assert_eq!(**keys.open_sealed(&sealed, "one").unwrap(), *b"value");
        assert!(matches!(keys.open_sealed(&sealed, "two"), Err(KeyError::Damaged)));
        let other = Keys::open(&dir.path().join("b")).unwrap();
        assert!(matches!(other.open_sealed(&sealed, "one"), Err(KeyError::Missing)));
        for length in 0..sealed.len() {
            assert!(keys.open_sealed(&sealed[..length], "one").is_err());
        }
        let again = Keys::open(&dir.path().join("a")).unwrap();
        assert_eq!(**again.open_sealed(&sealed, "one").unwrap(), *b"value");
        fs::write(dir.path().join("a"), "nonsense").unwrap();
        assert!(matches!(Keys::open(&dir.path().join("a")), Err(KeyError::Malformed(_))));
    }
}
