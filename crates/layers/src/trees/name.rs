//! Names of writable trees: one path component, never hidden, lower case.
//! Entries of the directory of trees that begin with a dot belong to this crate.

use std::fmt;
use std::str::FromStr;

use crate::LayerError;

/// Maximum length of a name, bytes.
const MAX_LENGTH: usize = 100;

/// A tree's name: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeName(String);

impl TreeName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TreeName {
    type Err = LayerError;

    fn from_str(text: &str) -> Result<Self, LayerError> {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.len() <= MAX_LENGTH
            && text.as_bytes().first().is_some_and(plain)
            && text.bytes().all(|byte| plain(&byte) || matches!(byte, b'-' | b'_' | b'.'));
        if fits { Ok(Self(text.to_owned())) } else { Err(LayerError::TreeName(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for good in ["a", "ready-17", "i0123456789abcdefghij", "s.1_2"] {
            assert_eq!(good.parse::<TreeName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "-x", "A", "a b", "ä", "a\0", &"a".repeat(101)] {
            assert!(bad.parse::<TreeName>().is_err(), "{bad:?}");
        }
    }
}
