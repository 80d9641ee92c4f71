//! Signed URLs of files, which need neither key nor token.
//! The signature covers path, operation, user and expiry; envd checks it.
//! They need a host name per sandbox: a server with one address for all sandboxes cannot route them.

use envd_api::FileLink;
pub use envd_api::Operation;

/// Options of a signed URL.
#[derive(Debug, Clone, Default)]
pub struct SignedUrlOptions {
    /// User whose file it is; by default the sandbox's default user.
    pub user: Option<String>,
    /// Unix time in seconds at which it expires; by default never.
    pub expires_at: Option<i64>,
}

pub(crate) fn sign(path: &str, operation: Operation, options: &SignedUrlOptions, token: &str) -> String {
    let username = options.user.as_deref().unwrap_or_default();
    FileLink { path, operation, username, expiration: options.expires_at }.sign(token)
}
