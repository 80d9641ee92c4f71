//! Decides whether a request goes to the API or to a port of a sandbox.
//! The host `<port>-<id>.<domain>` names a port; on hosts that name none, the headers `E2b-Sandbox-Id` and
//! `E2b-Sandbox-Port` do. A host that names a sandbox always wins over the headers.

use std::net::IpAddr;

use hyper::Request;
use hyper::header::{AsHeaderName, HOST};
use hyper::http::uri::{Authority, Scheme};
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
    /// The same host by HTTPS, on this port.
    Redirect(u16),
    /// Another server by a tunnel, which is not to be had here.
    Tunnel,
    Invalid(&'static str),
}

const INVALID_HOST: &str = "Invalid host";
const INVALID_ID: &str = "Invalid sandbox ID";
const INVALID_PORT: &str = "Invalid sandbox port";
const MISSING_HEADER: &str = "missing header";

pub(crate) fn target<B>(request: &Request<B>, domain: &str) -> Target {
    let Some(host) = host(request) else { return Target::Invalid(INVALID_HOST) };
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

/// Returns the host that a request names; empty if it names none. `None` if it names two, or something that is no host: a
/// proxy before or a server behind the edge might take another one for the host than the edge does.
pub(crate) fn host<B>(request: &Request<B>) -> Option<&str> {
    let named = single(request, HOST)?.unwrap_or("");
    let Some(target) = request.uri().authority().map(Authority::as_str) else {
        return is_host(named).then_some(named);
    };
    let scheme = request.uri().scheme();
    let agree = named.is_empty() || same_host(named, target, scheme);
    (is_host(target) && is_host(named) && agree).then_some(target)
}

/// Returns the value of a header; `Some(None)` without it, `None` if there are several or it is no text.
fn single<B>(request: &Request<B>, name: impl AsHeaderName) -> Option<Option<&str>> {
    let mut values = request.headers().get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Some(None),
        (Some(value), None) => value.to_str().ok().map(Some),
        _ => None,
    }
}

/// Whether a text is a host with an optional port, or empty. Credentials before it are refused.
fn is_host(text: &str) -> bool {
    text.is_empty() || is_address(text) || (!text.contains('@') && text.parse::<Authority>().is_ok())
}

/// Whether two hosts are the same, with a default port or without.
fn same_host(a: &str, b: &str, scheme: Option<&Scheme>) -> bool {
    let default = match scheme {
        Some(scheme) if *scheme == Scheme::HTTPS => ":443",
        _ => ":80",
    };
    let bare = |host: &str| host.strip_suffix(default).unwrap_or(host).to_ascii_lowercase();
    bare(a) == bare(b)
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
    let Some(id) = single(request, "e2b-sandbox-id") else { return Target::Invalid(INVALID_ID) };
    let Some(port) = single(request, "e2b-sandbox-port") else { return Target::Invalid(INVALID_PORT) };
    let (id, port) = match (id, port) {
        (Some(id), Some(port)) => (id, port),
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

pub(crate) fn without_port(host: &str) -> &str {
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

    #[test]
    fn requests_that_name_two_hosts_are_invalid() {
        let of = |uri: &str, hosts: &[&str]| {
            let request = Request::builder().uri(uri);
            let request = hosts.iter().fold(request, |request, host| request.header(HOST, *host));
            target(&request.body(()).unwrap(), "example.com")
        };
        let (one, two) = ("3000-iabc.x.dev", "3000-ixyz.x.dev");
        let absolute = format!("http://{one}/a");
        let invalid = Target::Invalid(INVALID_HOST);
        for (uri, hosts) in [
            ("/", &[one, two][..]),
            ("/", &[one, one]),
            ("/", &["localhost", one]),
            ("/", &["a.dev, 3000-iabc.x.dev"]),
            ("/", &["user@3000-iabc.x.dev"]),
            ("http://user@3000-iabc.x.dev/", &[]),
            (&absolute, &[two]),
            (&absolute, &["localhost"]),
            (&absolute, &["3000-iabc.x.dev:8080"]),
            (&absolute, &[one, one]),
        ] {
            assert_eq!(of(uri, hosts), invalid, "{uri} {hosts:?}");
        }
        let sandbox = sandbox("iabc", 3000, one, false);
        for hosts in [&[][..], &[one], &["3000-IABC.x.dev:80"]] {
            assert_eq!(of(&absolute, hosts), sandbox, "{hosts:?}");
        }
        assert_eq!(of("/", &[""]), Target::Api);
        assert_eq!(of("/", &[]), Target::Api);
    }

    #[test]
    fn routing_headers_are_given_once() {
        let (id, port) = (("e2b-sandbox-id", "iabc"), ("e2b-sandbox-port", "80"));
        assert_eq!(of("localhost", &[id, id, port]), Target::Invalid(INVALID_ID));
        assert_eq!(of("localhost", &[id, port, port]), Target::Invalid(INVALID_PORT));
    }

    proptest::proptest! {
        /// A host that begins with a port and a dash never reaches the API, whatever the headers say.
        #[test]
        fn any_host_and_headers_have_one_target(
            host in "([0-9]{1,6}-)?[a-zA-Z0-9.:_%@\\[\\]-]{0,40}(\\.example\\.org)?(:[0-9]{1,6})?",
            id in "[ -~]{0,24}",
            port in "[0-9 +-]{0,7}",
        ) {
            let request = Request::builder().uri("/").header(HOST, &host).header("e2b-sandbox-id", &id).header("e2b-sandbox-port", &port);
            let Ok(request) = request.body(()) else { return Ok(()) };
            let found = target(&request, "example.org");
            let label = host.split('.').next().unwrap_or_default();
            let names_a_port = label.split_once('-').is_some_and(|(port, rest)| {
                !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !rest.contains([':', '@', '[', ']', '%'])
            });
            if names_a_port && host.ends_with(".example.org") {
                proptest::prop_assert_ne!(found, Target::Api);
            }
        }
    }
}
