//! Changes of headers: those that belong to one connection are removed, and those of the rule are set.

use egress_rules::{HeaderRule, Part, Template};
use http::header::{
    CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use zeroize::Zeroizing;

use crate::refusal::Refusal;
use crate::{Asker, SecretError, SecretSource};

/// Maximum length of a header value with its secrets, bytes.
const MAX_VALUE: usize = 64 << 10;

/// Whether the client asks to switch to another protocol, as for websockets.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && names(headers, CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// Removes headers that are about one connection and not about the message. `keeps_upgrade` keeps those of a protocol switch.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, keeps_upgrade: bool) {
    let upgrade = headers.get(UPGRADE).cloned().filter(|_| keeps_upgrade);
    let takes_trailers = names(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = names(headers, CONNECTION).filter_map(|name| name.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Joins cookies, which HTTP/2 may split over several headers and HTTP/1.1 may not.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Returns the comma-separated words of a header.
fn names(headers: &HeaderMap, header: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

/// Sets the headers of a rule: each replaces all that the client sent under that name. Returns the host that the rule sets, if it does.
///
/// # Errors
/// A secret is missing, or a value with its secrets is no header value. Nothing may be sent then.
pub(crate) async fn apply(
    headers: &mut HeaderMap,
    rule: &HeaderRule,
    asker: &Asker<'_>,
    secrets: &dyn SecretSource,
) -> Result<Option<HeaderValue>, Refusal> {
    let mut host = None;
    for (name, template) in &rule.headers {
        let text = fill(template, asker, secrets).await?;
        let unusable =
            || Refusal::failed(format!("the value of header \"{name}\" is not a valid header value"));
        if text.len() > MAX_VALUE {
            return Err(unusable());
        }
        let mut value = HeaderValue::from_str(&text).map_err(|_| unusable())?;
        // Not stored in tables of compression, and not shown by `Debug`.
        value.set_sensitive(true);
        let header: HeaderName = name.parse().map_err(|_| unusable())?;
        if header == HOST {
            host = Some(value);
        } else {
            headers.insert(header, value);
        }
    }
    Ok(host)
}

async fn fill(
    template: &Template,
    asker: &Asker<'_>,
    secrets: &dyn SecretSource,
) -> Result<Zeroizing<String>, Refusal> {
    let mut text = Zeroizing::new(String::new());
    for part in &template.parts {
        match part {
            Part::Text(part) => text.push_str(part),
            Part::Secret(name) => {
                let value = secrets.secret(asker, name).await;
                text.push_str(&value.map_err(|error| unavailable("secret", name, error))?);
            }
            Part::Identity(name) => {
                let token = secrets.identity_token(asker, name).await;
                text.push_str(&token.map_err(|error| unavailable("identity token", name, error))?);
            }
        }
    }
    Ok(text)
}

fn unavailable(what: &str, name: &str, error: SecretError) -> Refusal {
    Refusal::failed(match error {
        SecretError::NotFound => format!("{what} \"{name}\" not found"),
        SecretError::NotForHost => format!("{what} \"{name}\" may not be sent to this host"),
        SecretError::Unavailable => format!("{what} \"{name}\" cannot be read at the moment"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed;

    #[async_trait::async_trait]
    impl SecretSource for Fixed {
        async fn secret(&self, _: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError> {
            match name {
                "key" => Ok(Zeroizing::new("${e2b.secrets.other}".to_owned())),
                "lines" => Ok(Zeroizing::new("a\r\nX-Evil: 1".to_owned())),
                _ => Err(SecretError::NotFound),
            }
        }

        async fn identity_token(&self, _: &Asker<'_>, name: &str) -> Result<Zeroizing<String>, SecretError> {
            match name {
                "My Token" => Ok(Zeroizing::new("a.b.c".to_owned())),
                _ => Err(SecretError::NotFound),
            }
        }
    }

    const ASKER: Asker<'static> = Asker { team: 1, sandbox: "i1", host: "a.example" };

    async fn applied(headers: &mut HeaderMap, rule: &[(&str, &str)]) -> Result<Option<HeaderValue>, Refusal> {
        let headers_of_rule =
            rule.iter().map(|(name, value)| ((*name).to_owned(), Template::parse(value).unwrap()));
        apply(headers, &HeaderRule { headers: headers_of_rule.collect() }, &ASKER, &Fixed).await
    }

    #[tokio::test]
    async fn a_rule_replaces_all_headers_of_its_names() {
        let mut headers = HeaderMap::new();
        for value in ["a", "b"] {
            headers.append("x-api-key", HeaderValue::from_static(value));
        }
        let rule = [
            ("X-Api-Key", "k ${e2b.secrets.key}"),
            ("X-Token", "${e2b.identity.tokens.My Token}"),
            ("X-Empty", ""),
            ("Host", "other.example"),
        ];
        let host = applied(&mut headers, &rule).await.unwrap();
        let values: Vec<_> = headers.get_all("x-api-key").iter().collect();
        assert_eq!(values, ["k ${e2b.secrets.other}"], "what replaces a placeholder is not searched again");
        assert_eq!(
            (&headers["x-empty"], &headers["x-token"]),
            (&HeaderValue::from_static(""), &HeaderValue::from_static("a.b.c"))
        );
        assert_eq!(host.unwrap(), "other.example");
        assert!(!headers.contains_key(HOST));
        assert!(!format!("{headers:?}").contains("other}"), "secrets are not shown by Debug");
    }

    #[tokio::test]
    async fn a_missing_or_unusable_secret_refuses_the_request() {
        for (value, reason) in [
            ("${e2b.secrets.none}", "secret \"none\" not found"),
            ("${e2b.secrets.lines}", "not a valid header value"),
            ("${e2b.identity.tokens.aws}", "identity token \"aws\" not found"),
        ] {
            let refusal = applied(&mut HeaderMap::new(), &[("X-A", value)]).await.unwrap_err().to_string();
            assert!(refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn headers_of_the_connection_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Own, Upgrade"),
            ("keep-alive", "1"),
            ("x-own", "1"),
            ("te", "gzip, trailers"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        assert!(wants_upgrade(&headers));
        let mut switching = headers.clone();
        strip_hop_by_hop(&mut switching, true);
        assert_eq!(switching["upgrade"], "websocket");
        strip_hop_by_hop(&mut headers, false);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-kept"]);
    }
}
