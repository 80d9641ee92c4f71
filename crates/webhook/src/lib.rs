//! Posts events to URLs of users, without letting them reach internal addresses through the server.
//! A name is resolved here and the connection made to the address that was checked: no second look-up, no redirect, no proxy.
//! Each delivery is signed: unpadded base64 of SHA-256 over secret and body, in the header `e2b-signature`.
#![forbid(unsafe_code)]

mod client;
mod target;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

pub use client::{DeliveryError, WebhookClient, WebhookPayload};
pub use target::{MAX_URL, Target, TargetError};

/// Returns the signature of a body, as receivers compute it according to E2B's documentation.
#[must_use]
pub fn signature(secret: &str, body: &[u8]) -> String {
    STANDARD_NO_PAD.encode(Sha256::new().chain_update(secret).chain_update(body).finalize())
}

#[cfg(test)]
mod tests {
    use super::signature;

    #[test]
    fn the_signature_is_over_secret_and_body() {
        // printf 'secret{"a":1}' | sha256sum | xxd -r -p | base64, without padding
        assert_eq!(signature("secret", br#"{"a":1}"#), "N7005LKS7534v+cOP1BSYTkklJDDwllM8gF1unZl4B0");
    }
}
