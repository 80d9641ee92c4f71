//! Authentication at registries: Basic, or a token from the server that the registry's challenge names.
//! AWS keys are exchanged for a password first; Google's keys are used as the password. A token is for pulling from one repository.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::config::{Credentials, RegistryHost};
use super::ecr;
use super::http::{Http, HttpRequest, origin_of, protocol};
use crate::OciError;

/// Maximum size of a token server's response, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Name and password.
pub(super) type Login = Option<(String, String)>;

/// Converts credentials to name and password.
pub(super) async fn login(http: &Http, credentials: &Credentials) -> Result<Login, OciError> {
    match credentials {
        Credentials::Anonymous => Ok(None),
        Credentials::Basic { username, password } => Ok(Some((username.clone(), password.clone()))),
        Credentials::Gcp { service_account_json } => {
            Ok(Some(("_json_key".to_owned(), service_account_json.clone())))
        }
        Credentials::Aws { access_key_id, secret_access_key, region } => {
            ecr::login(http, access_key_id, secret_access_key, region).await.map(Some)
        }
    }
}

fn basic((name, password): &(String, String)) -> Option<HeaderValue> {
    let mut value: HeaderValue =
        format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))).parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the `Authorization` header to send after a refusal; `None` if no other can be sent.
pub(super) async fn answer(
    http: &Http,
    origin: &RegistryHost,
    challenges: &HeaderMap,
    login: &Login,
    repository: &str,
) -> Result<Option<HeaderValue>, OciError> {
    let challenges = challenges.get_all(header::WWW_AUTHENTICATE).iter();
    let challenges: Vec<Challenge> =
        challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
    if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
        return token(http, origin, bearer, login, repository).await;
    }
    let wants_basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
    Ok(login.as_ref().filter(|_| wants_basic).and_then(basic))
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

async fn token(
    http: &Http,
    origin: &RegistryHost,
    challenge: &Challenge,
    login: &Login,
    repository: &str,
) -> Result<Option<HeaderValue>, OciError> {
    let realm = challenge.parameter("realm").ok_or_else(|| protocol(origin, "its challenge has no realm"))?;
    let scope =
        challenge.parameter("scope").map_or_else(|| format!("repository:{repository}:pull"), str::to_owned);
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let separator = if realm.contains('?') { '&' } else { '?' };
    let mut address = format!("{realm}{separator}scope={}", encode(&scope));
    if let Some(service) = challenge.parameter("service") {
        address = format!("{address}&service={}", encode(service));
    }
    let uri: Uri = address.parse().map_err(|_| protocol(origin, "its challenge's realm is no address"))?;
    let realm = origin_of(&uri)?;
    if !realm.is_tls && !http.registries().is_insecure(&realm) {
        return Err(protocol(origin, "its tokens come from a host without TLS"));
    }
    let mut headers = HeaderMap::new();
    if let Some(value) = login.as_ref().and_then(basic) {
        headers.insert(header::AUTHORIZATION, value);
    }
    let answer = http.ask(HttpRequest { method: Method::GET, uri, headers, body: Bytes::new() }).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(None),
        status => return Err(protocol(&realm, &format!("asked for a token, it answered {status}"))),
    }
    let content = answer.bytes(MAX_ANSWER).await?;
    let token: Token =
        serde_json::from_slice(&content).map_err(|_| protocol(&realm, "its token cannot be read"))?;
    let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| protocol(&realm, "its token is empty"))?;
    let value: Result<HeaderValue, _> = format!("Bearer {token}").parse();
    let mut value = value.map_err(|_| protocol(&realm, "its token cannot be sent"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// One `WWW-Authenticate` header.
#[derive(Debug)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            parameters.push((name.trim().to_ascii_lowercase(), value));
            rest = after;
        }
        Some(Self { scheme: scheme.to_ascii_lowercase(), parameters })
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Returns the text up to the closing quote, and the rest after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:a/b:pull,push""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.parameter("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.parameter("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenge.parameter("error"), None);
        let challenge = Challenge::parse(r#"Basic realm="a \"b\"", charset=UTF-8"#).unwrap();
        assert_eq!(challenge.parameter("realm"), Some(r#"a "b""#));
        assert_eq!(challenge.parameter("charset"), Some("UTF-8"));
        assert!(Challenge::parse(r#"Bearer realm="open"#).is_none());
        assert_eq!(Challenge::parse("Negotiate").unwrap().scheme, "negotiate");
    }
}
