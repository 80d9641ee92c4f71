//! Decides whether a request goes to the API or to a port of a sandbox.
//! The host `<port>-<id>.<domain>` names a port; on hosts that name none, the headers `E2b-Sandbox-Id` and
//! `E2b-Sandbox-Port` do. A host that names a sandbox always wins over the headers.

use std::net::IpAddr;

use hyper::Request;
use hyper::header::HOST;
use ids::SandboxId;

/// A port of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) id: SandboxId,
    pub(crate) port: u16,
    /// The host as the client wrote it, port included.
    pub(crate) host: String,
    /// The host was the shared `sandbox.<domain>`, which means nothing to a server in the sandbox.
    pub(crate) shared_host: bool,
}

/// The destination of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Api,
    Sandbox(Address),
    Invalid(&'static str),
}

const INVALID_HOST: &str = "Invalid host";
const INVALID_ID: &str = "Invalid sandbox ID";
const INVALID_PORT: &str = "Invalid sandbox port";
const MISSING_HEADER: &str = "missing header";

pub(crate) fn target<B>(request: &Request<B>, domain: &str) -> Target {
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => match request.headers().get(HOST).map(|host| host.to_str()) {
            Some(Ok(host)) => host,
            Some(Err(_)) => return Target::Invalid(INVALID_HOST),
            None => "",
        },
    };
    let name = without_port(host).to_ascii_lowercase();
    if name.is_empty() || is_address(&name) || name == "localhost" {
        return by_headers(request, host, false, false);
    }
    let (label, rest) = name.split_once('.').unwrap_or((&name, ""));
    if label == "sandbox" && !rest.is_empty() {
        return by_headers(request, host, true, true);
    }
    // Digits and a dash at the front: no API host has such a name.
    let names_a_sandbox = label
        .split_once('-')
        .is_some_and(|(port, _)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let is_our_domain = rest == domain;
    if names_a_sandbox || (is_our_domain && label != "api") {
        return by_host(label, rest, host);
    }
    by_headers(request, host, false, false)
}

fn by_host(label: &str, rest: &str, host: &str) -> Target {
    let mut parts = label.split('-');
    let (Some(port), Some(id), false) = (parts.next(), parts.next(), rest.is_empty()) else {
        return Target::Invalid(INVALID_HOST);
    };
    let Ok(id) = id.parse() else { return Target::Invalid(INVALID_ID) };
    let Some(port) = parse_port(port) else { return Target::Invalid(INVALID_PORT) };
    Target::Sandbox(Address { id, port, host: host.to_owned(), shared_host: false })
}

fn by_headers<B>(request: &Request<B>, host: &str, only_sandboxes: bool, shared_host: bool) -> Target {
    let id = request.headers().get("e2b-sandbox-id");
    let port = request.headers().get("e2b-sandbox-port");
    let (id, port) = match (id, port) {
        (Some(id), Some(port)) => (id.to_str().unwrap_or(""), port.to_str().unwrap_or("")),
        (None, None) if !only_sandboxes => return Target::Api,
        _ => return Target::Invalid(MISSING_HEADER),
    };
    // Old clients append a suffix to ids.
    let id = id.split_once('-').map_or(id, |(id, _)| id);
    let Ok(id) = id.parse() else { return Target::Invalid(INVALID_ID) };
    let Some(port) = parse_port(port) else { return Target::Invalid(INVALID_PORT) };
    Target::Sandbox(Address { id, port, host: host.to_owned(), shared_host })
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` would accept a sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_once(']').map_or(host, |(address, _)| &address[1..]);
    }
    match host.rsplit_once(':') {
        // More than one colon is a bare IPv6 address.
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

fn is_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, headers: &[(&str, &str)]) -> Target {
        let mut request = Request::builder().uri("/").header(HOST, host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        target(&request.body(()).unwrap(), "example.com")
    }

    fn sandbox(id: &str, port: u16, host: &str, shared_host: bool) -> Target {
        Target::Sandbox(Address { id: id.parse().unwrap(), port, host: host.to_owned(), shared_host })
    }

    #[test]
    fn hosts_name_sandboxes_on_any_domain() {
        for host in [
            "3000-iabc.example.com",
            "3000-iabc.localhost:3000",
            "3000-iabc-6532622b.whatever.dev",
            "3000-IABC.x",
        ] {
            assert_eq!(of(host, &[]), sandbox("iabc", 3000, host, false), "{host}");
        }
        let headers = [("E2b-Sandbox-Id", "iother"), ("E2b-Sandbox-Port", "1")];
        assert_eq!(of("80-iabc.x.y", &headers), sandbox("iabc", 80, "80-iabc.x.y", false), "the host wins");
    }

    #[test]
    fn headers_name_sandboxes_on_hosts_that_do_not() {
        let headers = [("E2b-Sandbox-Id", "iabc"), ("E2b-Sandbox-Port", "49983")];
        for host in
            ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "10.0.0.1", "box.lan", "api.example.com"]
        {
            assert_eq!(of(host, &headers), sandbox("iabc", 49983, host, false), "{host}");
            assert_eq!(of(host, &[]), Target::Api, "{host}");
            assert_eq!(of(host, &headers[..1]), Target::Invalid("missing header"), "{host}");
        }
        assert_eq!(of("sandbox.x.y", &headers), sandbox("iabc", 49983, "sandbox.x.y", true));
        assert_eq!(of("sandbox.x.y", &[]), Target::Invalid("missing header"));
    }

    #[test]
    fn malformed_hosts_are_invalid() {
        for (host, text) in [
            ("3000-iabc", INVALID_HOST),
            ("nodash.example.com", INVALID_HOST),
            ("3000-.x.y", INVALID_ID),
            ("3000-i_b.x.y", INVALID_ID),
            ("0-iabc.x.y", INVALID_PORT),
            ("65536-iabc.x.y", INVALID_PORT),
            ("web-iabc.example.com", INVALID_PORT),
        ] {
            assert_eq!(of(host, &[]), Target::Invalid(text), "{host}");
        }
        for port in ["+80", "", "x", "0", "65536"] {
            let headers = [("E2b-Sandbox-Id", "iabc"), ("E2b-Sandbox-Port", port)];
            assert_eq!(of("localhost", &headers), Target::Invalid(INVALID_PORT), "{port:?}");
        }
        assert_eq!(of("my-server.lan", &[]), Target::Api, "a name with a dash is still a name");
    }
}
