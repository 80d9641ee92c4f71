//! Gets a password for Amazon's registry: one call of GetAuthorizationToken, signed with Signature Version 4 (only as far as this
//! call needs it: a POST without a query). The password is valid for twelve hours; it is used once and not stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::http::{Http, HttpRequest};
use crate::OciError;

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Maximum size of AWS' response, bytes.
const MAX_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenResponse {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
}

/// Returns name and password for the account's registry.
pub(super) async fn login(
    http: &Http,
    key_id: &str,
    secret: &str,
    region: &str,
) -> Result<(String, String), OciError> {
    let fail = |why: String| OciError::Aws { region: region.to_owned(), why };
    let is_region = !region.is_empty()
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !is_region {
        return Err(fail("it is not a region's name".to_owned()));
    }
    let address = match &http.registries().ecr_endpoint {
        Some(endpoint) => {
            let scheme = if endpoint.origin.is_tls { "https" } else { "http" };
            format!("{scheme}://{}/", endpoint.origin.authority)
        }
        None if region.starts_with("cn-") => format!("https://api.ecr.{region}.amazonaws.com.cn/"),
        None => format!("https://api.ecr.{region}.amazonaws.com/"),
    };
    let uri: Uri = address.parse().map_err(|_| fail("its endpoint is no address".to_owned()))?;
    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
    let body = b"{}";
    let moment = stamp(OffsetDateTime::now_utc());
    let signed = [
        ("content-type", CONTENT_TYPE),
        ("host", host.as_str()),
        ("x-amz-date", moment.as_str()),
        ("x-amz-target", TARGET),
    ];
    let scope = Scope { key_id, secret, region, service: "ecr" };
    let authorization = sign(&scope, &moment, "POST", "/", "", &signed, body);
    let mut headers = HeaderMap::new();
    let own = [("authorization", authorization.as_str())];
    for (name, value) in signed.into_iter().chain(own).filter(|(name, _)| *name != "host") {
        let value = HeaderValue::from_str(value).map_err(|_| fail("the key id cannot be sent".to_owned()))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    let ask = HttpRequest { method: Method::POST, uri, headers, body: Bytes::from_static(body) };
    let answer = http.ask(ask).await?;
    let status = answer.status;
    let content = answer.bytes(MAX_ANSWER).await?;
    if !status.is_success() {
        return Err(fail(format!("AWS answered {status}: {}", reason(&content))));
    }
    let answer: TokenResponse =
        serde_json::from_slice(&content).map_err(|_| fail("its answer cannot be read".to_owned()))?;
    let token =
        answer.authorization_data.first().and_then(|data| STANDARD.decode(&data.authorization_token).ok());
    let pair = token.and_then(|token| String::from_utf8(token).ok());
    let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
    let (name, password) = pair.ok_or_else(|| fail("its token cannot be read".to_owned()))?;
    Ok((name.to_owned(), password.to_owned()))
}

/// Returns the error message of AWS, shortened.
fn reason(content: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let text = value["message"].as_str().or(value["Message"].as_str()).or(value["__type"].as_str());
    text.unwrap_or("no reason given").chars().take(300).collect()
}

fn stamp(moment: OffsetDateTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    moment.format(format).expect("the format has only parts that a date and time has")
}

struct Scope<'a> {
    key_id: &'a str,
    secret: &'a str,
    region: &'a str,
    service: &'a str,
}

/// Returns the `Authorization` header. `headers` are in order, by lower-case names; `path` and `query` are encoded as they must be.
fn sign(
    scope: &Scope<'_>,
    moment: &str,
    method: &str,
    path: &str,
    query: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> String {
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let request =
        format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{}", hex::encode(Sha256::digest(body)));
    let date = moment.split('T').next().unwrap_or_default();
    let credential = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let text = format!("AWS4-HMAC-SHA256\n{moment}\n{credential}\n{}", hex::encode(Sha256::digest(request)));
    let mut key = mac(format!("AWS4{}", scope.secret).as_bytes(), date);
    for part in [scope.region, scope.service, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex::encode(mac(&key, &text));
    let key_id = scope.key_id;
    format!("AWS4-HMAC-SHA256 Credential={key_id}/{credential}, SignedHeaders={names}, Signature={signature}")
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.chain_update(text).finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in AWS' documentation of the signature: a GET to IAM.
    #[test]
    fn the_documented_example_has_the_same_signature() {
        let scope = Scope {
            key_id: "AKIDEXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            service: "iam",
        };
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let query = "Action=ListUsers&Version=2010-05-08";
        let header = sign(&scope, "20150830T123600Z", "GET", "/", query, &headers, b"");
        assert_eq!(
            header,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    #[test]
    fn stamps_are_basic_iso() {
        assert_eq!(stamp(OffsetDateTime::UNIX_EPOCH), "19700101T000000Z");
    }
}
