//! Signatures of links to files. Clients make them; envd checks them in place of the access token.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

/// What a signed link allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Download.
    Read,
    /// Upload.
    Write,
}

impl Operation {
    /// The operation's name in the signed text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The parts of a link to a file that its signature covers, as they appear in the query.
#[derive(Debug, Clone, Copy)]
pub struct FileLink<'a> {
    /// The path, not resolved; empty when absent.
    pub path: &'a str,
    /// What the link allows.
    pub operation: Operation,
    /// The user whose file it is; empty when absent.
    pub username: &'a str,
    /// Unix time in seconds after which the link is refused.
    pub expiration: Option<i64>,
}

impl FileLink<'_> {
    /// Returns the link's signature under a sandbox's envd token: `v1_` and a SHA-256 in base64.
    #[must_use]
    pub fn sign(&self, token: &str) -> String {
        let mut text = format!("{}:{}:{}:{token}", self.path, self.operation.as_str(), self.username);
        if let Some(expiration) = self.expiration {
            text = format!("{text}:{expiration}");
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_official_clients() {
        let link =
            FileLink { path: "hello.txt", operation: Operation::Read, username: "user", expiration: None };
        assert_eq!(
            link.sign("0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"),
            "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
        );
    }
}
