//! Signed addresses of files, for someone who has neither key nor token.
//! The signature covers path, direction, user and expiry; the sandbox itself checks it.
//! A server behind one address for all sandboxes cannot route them: they need a host name of their own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

/// Direction of a signed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Download.
    Read,
    /// Upload.
    Write,
}

/// Details of a signed address.
#[derive(Debug, Clone, Default)]
pub struct SignedUrlOptions {
    /// Whose file it is; by default the sandbox's default user's.
    pub user: Option<String>,
    /// Unix time in seconds at which it stops working; by default never.
    pub expires_at: Option<i64>,
}

pub(crate) fn sign(path: &str, operation: Operation, options: &SignedUrlOptions, token: &str) -> String {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let user = options.user.as_deref().unwrap_or_default();
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(at) = options.expires_at {
        text = format!("{text}:{at}");
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_contract_does() {
        let options = SignedUrlOptions { user: Some("user".into()), expires_at: None };
        assert_eq!(
            sign("hello.txt", Operation::Read, &options, "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"),
            "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
        );
    }
}
