//! Header changes of proxied requests and responses: only those that HTTP demands.
//! Hop-by-hop headers are removed, the client's address is forwarded only if the operator wants it, and the host stays as the client wrote it.
//! Paths of envd that are reserved for the control plane are recognised in any encoding.

use std::net::IpAddr;

use base64::prelude::{BASE64_STANDARD, Engine};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SEC_WEBSOCKET_KEY, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::Scheme;
use percent_encoding::percent_decode_str;

use crate::target::Address;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a server in a sandbox is told of the client, if the operator wants that.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) client: IpAddr,
    pub(crate) scheme: Scheme,
}

/// Returns the protocol that the client asks to switch to, if it does.
pub(crate) fn requested_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_requested = headers.get_all(CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|list| list.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")))
    });
    if is_requested { headers.get(UPGRADE).cloned() } else { None }
}

/// Whether a request is one of gRPC, whose servers speak HTTP/2 alone. Not gRPC-Web, which is for those of HTTP/1.1.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Makes the headers of a websocket's beginning in HTTP/2 (RFC 8441) those of HTTP/1.1, which has a key in addition.
pub(crate) fn begin_websocket(headers: &mut HeaderMap) {
    let key = BASE64_STANDARD.encode(ids::random_hex::<8>());
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64 is a header value"));
}

/// Prepares a request's headers for the server in the sandbox. `mask` replaces the host.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    address: &Address,
    mask: Option<&str>,
    forwarded: Option<&Forwarded>,
) {
    let upgrade = requested_upgrade(headers);
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip_hop_by_hop(headers);
    // The edge has already answered it by reading the body.
    headers.remove(EXPECT);
    strip_forwarded(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    join_cookies(headers);

    let host = match mask {
        Some(mask) => mask.replace("${PORT}", &address.port.to_string()),
        None if address.shared_host => {
            let rest = address.host.split_once('.').map_or("", |(_, rest)| rest);
            format!("{}-{}.{rest}", address.port, address.id)
        }
        None => address.host.clone(),
    };
    if (mask.is_some() || forwarded.is_some())
        && let Ok(original) = HeaderValue::from_str(&address.host)
    {
        headers.insert(FORWARDED_HOST, original);
    }
    if let Some(Forwarded { client, scheme }) = forwarded {
        let values = [("x-forwarded-for", client.to_string()), ("x-forwarded-proto", scheme.to_string())];
        for (name, value) in values {
            let value = HeaderValue::from_str(&value).expect("addresses and schemes are header values");
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    match HeaderValue::from_str(&host) {
        Ok(host) => headers.insert(HOST, host),
        Err(_) => headers.insert(HOST, HeaderValue::from_static("localhost")),
    };
}

/// Prepares a response's headers for the client. `switching` keeps the headers of a protocol switch.
pub(crate) fn to_client(headers: &mut HeaderMap, switching: bool) {
    let upgrade = headers.get(UPGRADE).cloned();
    strip_hop_by_hop(headers);
    if switching {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = upgrade {
            headers.insert(UPGRADE, protocol);
        }
    }
}

/// Removes what proxies before us say of the client, and what clients pretend.
fn strip_forwarded(headers: &mut HeaderMap) {
    let is_forwarded =
        |name: &&HeaderName| name.as_str() == "forwarded" || name.as_str().starts_with("x-forwarded-");
    let names: Vec<HeaderName> = headers.keys().filter(is_forwarded).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes what concerns one connection. `Trailer` stays: it announces trailers, which are passed on.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
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
}

/// HTTP/2 may split cookies over several headers; HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Returns the reserved path that a request path means in any encoding, or `None` if it means another path.
pub(crate) fn reserved_path(path: &str) -> Option<&'static str> {
    let mut text = path.to_owned();
    // Strictly, a path that is encoded twice is another path, but there is no honest reason to send one.
    for _ in 0..4 {
        let normalized = normalize(&text);
        if let Some(reserved) = envd_api::paths::RESERVED.iter().find(|reserved| **reserved == normalized) {
            return Some(reserved);
        }
        let decoded = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if decoded == text {
            return None;
        }
        text = decoded;
    }
    None
}

/// Removes empty segments, `.` and `..` from a path.
fn normalize(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_paths_are_recognised_in_any_encoding() {
        for path in [
            "/init",
            "/init/",
            "//init",
            "/./init",
            "/x/../init",
            "/%69nit",
            "/%2569nit",
            "/x/%2e%2e/init",
            "/..%2finit",
            "/freeze",
            "/upgrade",
            "/fsthaw",
        ] {
            assert!(reserved_path(path).is_some(), "{path}");
        }
        for path in
            ["/", "/health", "/files", "/init/x", "/initial", "/x/init", "/process.Process/Start", "/INIT"]
        {
            assert!(reserved_path(path).is_none(), "{path}");
        }
    }

    #[test]
    fn grpc_is_told_from_grpc_web() {
        let is = |kind: &'static str| {
            is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]))
        };
        assert!(
            is("application/grpc") && is("application/grpc+proto") && is("application/grpc;charset=utf-8")
        );
        assert!(!is("application/grpc-web") && !is("application/grpc-web+proto") && !is("application/json"));
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let address =
            Address { id: "iabc".parse().unwrap(), port: 80, host: "80-iabc.x".into(), shared_host: false };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-prefix", "/a"),
            ("x-kept", "1"),
            ("e2b-traffic-access-token", "t"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        to_upstream(&mut headers, &address, None, None);
        let mut names: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        names.sort();
        assert_eq!(
            names,
            ["cookie: a=1; b=2", "e2b-traffic-access-token: t", "host: 80-iabc.x", "x-kept: 1"]
        );
    }

    #[test]
    fn hosts_are_masked_or_rebuilt() {
        let mut address = Address {
            id: "iabc".parse().unwrap(),
            port: 80,
            host: "80-iabc.x.y:3000".into(),
            shared_host: false,
        };
        let host = |address: &Address, mask: Option<&str>| {
            let mut headers = HeaderMap::new();
            to_upstream(&mut headers, address, mask, None);
            let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text("host").unwrap(), text("x-forwarded-host"))
        };
        assert_eq!(host(&address, None), ("80-iabc.x.y:3000".into(), None));
        let masked = ("localhost:80".into(), Some("80-iabc.x.y:3000".into()));
        assert_eq!(host(&address, Some("localhost:${PORT}")), masked);
        address.shared_host = true;
        address.host = "sandbox.x.y".into();
        assert_eq!(host(&address, None), ("80-iabc.x.y".into(), None));
    }
}
