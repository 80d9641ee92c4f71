//! Authorization of requests: the sandbox's access token, signatures of file links, and the user named by Basic.
//! The token authorizes the caller; the Basic user only names the user to act as.
//! Secrets are compared in constant time.

use std::num::ParseIntError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envd_api::headers::ACCESS_TOKEN;
use envd_api::{FileLink, Operation};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::rest::query::Query;

/// Why a request is refused; always status 401.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AuthError {
    /// The token is missing or wrong.
    #[error("unauthorized access, please provide a valid access token or method signing if supported")]
    Token,
    /// The token of a file request is wrong.
    #[error("access token present in header but does not match")]
    FileToken,
    /// A file request has neither token nor signature.
    #[error("missing signature query parameter")]
    NoSignature,
    /// The signature does not match.
    #[error("invalid signature")]
    Signature,
    /// The signature matches, but has expired.
    #[error("signature is already expired")]
    Expired,
}

/// A link to a file with its signature, as a query holds them.
#[derive(Debug, Clone, Copy)]
pub struct SignedLink<'a> {
    /// What the signature covers.
    pub link: FileLink<'a>,
    /// The signature, if there is one.
    pub signature: Option<&'a str>,
}

impl<'a> SignedLink<'a> {
    /// Reads a link for an operation from a query.
    ///
    /// # Errors
    /// The expiration is not a number.
    pub fn from_query(query: &'a Query, operation: Operation) -> Result<Self, ParseIntError> {
        let given = |name| query.get(name).filter(|text| !text.is_empty());
        let link = FileLink {
            path: query.get("path").unwrap_or(""),
            operation,
            username: query.get("username").unwrap_or(""),
            expiration: given("signature_expiration").map(str::parse).transpose()?,
        };
        Ok(Self { link, signature: given("signature") })
    }
}

/// Compares two secrets in constant time.
pub fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// Returns the token of a request.
pub fn token(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCESS_TOKEN)?.to_str().ok()
}

/// Checks the token of a request that is not for a file.
pub fn check_token(expected: Option<&str>, headers: &HeaderMap) -> Result<(), AuthError> {
    let Some(expected) = expected else { return Ok(()) };
    match token(headers) {
        Some(given) if same(given, expected) => Ok(()),
        _ => Err(AuthError::Token),
    }
}

/// Checks a file request: by its token if it has one, else by its signature. `now` is Unix time in seconds.
pub fn check_link(
    expected: Option<&str>,
    headers: &HeaderMap,
    signed: SignedLink<'_>,
    now: i64,
) -> Result<(), AuthError> {
    let Some(expected) = expected else { return Ok(()) };
    if headers.contains_key(ACCESS_TOKEN) {
        return match token(headers) {
            Some(given) if same(given, expected) => Ok(()),
            _ => Err(AuthError::FileToken),
        };
    }
    let signature = signed.signature.ok_or(AuthError::NoSignature)?;
    if !same(signature, &signed.link.sign(expected)) {
        return Err(AuthError::Signature);
    }
    match signed.link.expiration {
        Some(expiration) if expiration < now => Err(AuthError::Expired),
        _ => Ok(()),
    }
}

/// Returns the user that a request names by Basic authorization.
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
    const LINK: FileLink<'_> =
        FileLink { path: "hello.txt", operation: Operation::Read, username: "user", expiration: None };
    const UNSIGNED: SignedLink<'_> = SignedLink { link: LINK, signature: None };

    #[test]
    fn checks_in_order() {
        let none = HeaderMap::new();
        assert_eq!(check_link(None, &none, UNSIGNED, 0), Ok(()));
        assert_eq!(check_link(Some(TOKEN), &none, UNSIGNED, 0), Err(AuthError::NoSignature));

        let expiring = FileLink { expiration: Some(10), ..LINK };
        let signature = expiring.sign(TOKEN);
        let signed = SignedLink { link: expiring, signature: Some(&signature) };
        assert_eq!(check_link(Some(TOKEN), &none, signed, 10), Ok(()));
        assert_eq!(check_link(Some(TOKEN), &none, signed, 11), Err(AuthError::Expired));
        let other = SignedLink { link: FileLink { path: "other.txt", ..expiring }, ..signed };
        assert_eq!(check_link(Some(TOKEN), &none, other, 11), Err(AuthError::Signature));

        let mut wrong = HeaderMap::new();
        wrong.insert(ACCESS_TOKEN, HeaderValue::from_static("no"));
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
