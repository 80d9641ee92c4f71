//! Who may call: the sandbox's access token, signatures for file links, and the user named by Basic.
//! The token proves the caller, the Basic user only says whom to act as.
//! Comparisons of secrets take the same time whatever they find.

use std::num::ParseIntError;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::rest::query::Query;

/// Header with the sandbox's token.
pub const TOKEN_HEADER: &str = "x-access-token";

/// Why a request is not let through; always 401.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AuthError {
    /// Token missing or wrong.
    #[error("unauthorized access, please provide a valid access token or method signing if supported")]
    Token,
    /// A file request with a wrong token.
    #[error("access token present in header but does not match")]
    FileToken,
    /// A file request with neither token nor signature.
    #[error("missing signature query parameter")]
    NoSignature,
    /// A signature for something else.
    #[error("invalid signature")]
    Signature,
    /// A good signature too late.
    #[error("signature is already expired")]
    Expired,
}

/// The parts of a file link that its signature covers, as they stand in the query.
#[derive(Debug, Default, Clone, Copy)]
pub struct Link<'a> {
    /// The path, unresolved; empty when absent.
    pub path: &'a str,
    /// `read` or `write`.
    pub operation: &'a str,
    /// The user; empty when absent.
    pub username: &'a str,
    /// The signature itself.
    pub signature: Option<&'a str>,
    /// Unix seconds after which the link is void.
    pub expiration: Option<i64>,
}

impl<'a> Link<'a> {
    /// The link that a query is, for an operation.
    ///
    /// # Errors
    /// The expiration is no number.
    pub fn from_query(query: &'a Query, operation: &'a str) -> Result<Self, ParseIntError> {
        let given = |name| query.get(name).filter(|text| !text.is_empty());
        Ok(Self {
            path: query.get("path").unwrap_or(""),
            operation,
            username: query.get("username").unwrap_or(""),
            signature: given("signature"),
            expiration: given("signature_expiration").map(str::parse).transpose()?,
        })
    }
}

/// Compares two secrets.
pub fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// The token a request carries.
pub fn token(headers: &HeaderMap) -> Option<&str> {
    headers.get(TOKEN_HEADER)?.to_str().ok()
}

/// Checks the token of an ordinary request.
pub fn check_token(expected: Option<&str>, headers: &HeaderMap) -> Result<(), AuthError> {
    let Some(expected) = expected else { return Ok(()) };
    match token(headers) {
        Some(given) if same(given, expected) => Ok(()),
        _ => Err(AuthError::Token),
    }
}

/// Checks a file request: a token if it has one, else its signature, else nothing.
pub fn check_link(
    expected: Option<&str>,
    headers: &HeaderMap,
    link: Link<'_>,
    now: i64,
) -> Result<(), AuthError> {
    let Some(expected) = expected else { return Ok(()) };
    if headers.contains_key(TOKEN_HEADER) {
        return match token(headers) {
            Some(given) if same(given, expected) => Ok(()),
            _ => Err(AuthError::FileToken),
        };
    }
    let signature = link.signature.ok_or(AuthError::NoSignature)?;
    if !same(signature, &sign(link, expected)) {
        return Err(AuthError::Signature);
    }
    match link.expiration {
        Some(expiration) if expiration < now => Err(AuthError::Expired),
        _ => Ok(()),
    }
}

/// The signature of a link under a token.
pub fn sign(link: Link<'_>, token: &str) -> String {
    let mut text = format!("{}:{}:{}:{token}", link.path, link.operation, link.username);
    if let Some(expiration) = link.expiration {
        text.push_str(&format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

/// The user that a request names through Basic authorization, if it does.
pub fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(credentials.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, _password) = decoded.split_once(':')?;
    Some(user.to_owned()).filter(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
    const LINK: Link<'_> =
        Link { path: "hello.txt", operation: "read", username: "user", signature: None, expiration: None };

    #[test]
    fn signs_as_the_clients_do() {
        assert_eq!(sign(LINK, TOKEN), "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E");
    }

    #[test]
    fn checks_in_order() {
        let none = HeaderMap::new();
        assert_eq!(check_link(None, &none, LINK, 0), Ok(()));
        assert_eq!(check_link(Some(TOKEN), &none, LINK, 0), Err(AuthError::NoSignature));

        let expiring = Link { expiration: Some(10), ..LINK };
        let signature = sign(expiring, TOKEN);
        let signed = Link { signature: Some(&signature), ..expiring };
        assert_eq!(check_link(Some(TOKEN), &none, signed, 10), Ok(()));
        assert_eq!(check_link(Some(TOKEN), &none, signed, 11), Err(AuthError::Expired));
        let other = Link { path: "other.txt", ..signed };
        assert_eq!(check_link(Some(TOKEN), &none, other, 11), Err(AuthError::Signature));

        let mut wrong = HeaderMap::new();
        wrong.insert(TOKEN_HEADER, HeaderValue::from_static("no"));
        assert_eq!(check_link(Some(TOKEN), &wrong, signed, 10), Err(AuthError::FileToken));
        assert_eq!(check_token(Some(TOKEN), &wrong), Err(AuthError::Token));
        assert_eq!(check_token(None, &wrong), Ok(()));
    }

    #[test]
    fn reads_the_basic_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(basic_user(&headers), None);
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjo="));
        assert_eq!(basic_user(&headers), Some("user".to_owned()));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer dXNlcjo="));
        assert_eq!(basic_user(&headers), None);
    }
}
