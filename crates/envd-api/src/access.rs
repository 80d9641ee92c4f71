//! Who may send a request to envd: the rules that the edge enforces for clients, and envd for programs inside its sandbox.
//! A request needs the access token; links to files may have a signature instead. Secrets are compared in constant time.

use std::num::ParseIntError;

use http::{HeaderMap, Method, StatusCode};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::headers::ACCESS_TOKEN;
use crate::query::Query;
use crate::{FileLink, Operation, paths};

/// Why a request is refused.
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
    /// The time in a link is not a number.
    #[error("invalid signature_expiration")]
    Expiration(#[from] ParseIntError),
}

impl AuthError {
    /// Status of the response: 400 for a malformed link, else 401.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Expiration(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::UNAUTHORIZED,
        }
    }
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

/// Compares two secrets.
pub fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// The token a request carries.
pub fn token(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCESS_TOKEN)?.to_str().ok()
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

/// Checks a request by its method, path, query and headers. `token` is the sandbox's; `now` is Unix time in seconds.
///
/// # Errors
/// It lacks the token, or its link's signature is missing, wrong, expired or malformed.
pub fn authorize(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    token: &str,
    now: i64,
) -> Result<(), AuthError> {
    let operation = match (method, path) {
        // Preflights of browsers carry no credentials.
        (&Method::OPTIONS, _) | (&Method::GET, paths::HEALTH) => return Ok(()),
        (&Method::GET, paths::FILES) => Operation::Read,
        (&Method::POST, paths::FILES) => Operation::Write,
        _ => return check_token(Some(token), headers),
    };
    let query = Query::parse(query);
    check_link(Some(token), headers, SignedLink::from_query(&query, operation)?, now)
}

/// Returns the query without the parts that authorize a link, which are of no use to envd once they have been checked.
/// The rest stays as it was written.
#[must_use]
pub fn without_signature(query: &str) -> String {
    let is_kept = |pair: &&str| {
        let name = Query::parse(Some(pair));
        name.get("signature").is_none() && name.get("signature_expiration").is_none()
    };
    query.split('&').filter(is_kept).collect::<Vec<_>>().join("&")
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
    fn every_request_but_health_needs_a_credential() {
        let headers = |token: Option<&'static str>| {
            let token = token
                .map(|token| (http::HeaderName::from_static(ACCESS_TOKEN), HeaderValue::from_static(token)));
            token.into_iter().collect::<HeaderMap>()
        };
        let check = |method: Method, path: &str, query: Option<&str>, token: Option<&'static str>| {
            authorize(&method, path, query, &headers(token), TOKEN, 0)
        };
        assert_eq!(check(Method::GET, "/health", None, None), Ok(()));
        assert_eq!(check(Method::OPTIONS, "/files", None, None), Ok(()));
        for (method, path) in [
            (Method::POST, "/health"),
            (Method::GET, "/health/"),
            (Method::GET, "//health"),
            (Method::GET, "/envs"),
            (Method::HEAD, "/files"),
            (Method::POST, "/files/compose"),
            (Method::POST, "/init"),
            (Method::POST, "/process.Process/Start"),
        ] {
            assert_eq!(check(method.clone(), path, None, None), Err(AuthError::Token), "{method} {path}");
            assert_eq!(check(method, path, None, Some(TOKEN)), Ok(()));
        }
        let query =
            format!("path=hello.txt&username=user&signature={}", LINK.sign(TOKEN).replace('+', "%2B"));
        assert_eq!(check(Method::GET, "/files", Some(&query), None), Ok(()));
        assert_eq!(check(Method::POST, "/files", Some(&query), None), Err(AuthError::Signature));
        let malformed = check(Method::GET, "/files", Some("signature=x&signature_expiration=y"), Some(TOKEN));
        assert_eq!(malformed.unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn signatures_are_removed_however_they_are_written() {
        let query = "path=a%20b&signature=v1_x&username=u&%73ignature=y&signature_expiration=1&signatures=z";
        assert_eq!(without_signature(query), "path=a%20b&username=u&signatures=z");
        assert_eq!(without_signature("signature"), "");
    }
}
