//! How clients reach this server: the scheme and host of a request as the client sees them, also behind a proxy, and whose request it is.

use std::net::IpAddr;
use std::str::FromStr;

use hyper::header::HOST;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Uri};

use crate::EdgeConfig;
use crate::listener::Origin;

/// Address at which clients reach the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    scheme: Scheme,
    authority: Authority,
}

impl PublicUrl {
    /// Returns the port, if it is not the scheme's own.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let default = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        self.authority.port_u16().filter(|port| *port != default)
    }
}

impl std::fmt::Display for PublicUrl {
    /// Writes it without a slash at the end.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.parse::<Uri>().map_err(|error| error.to_string())?.into_parts();
        let is_bare = parts.path_and_query.is_none_or(|path| path == "/");
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority))
                if is_bare
                    && [Scheme::HTTP, Scheme::HTTPS].contains(&scheme)
                    && !authority.as_str().contains('@') =>
            {
                Ok(Self { scheme, authority })
            }
            _ => Err("write it as https://api.example.org, without a path".to_owned()),
        }
    }
}

/// Returns the scheme by which the client made a request.
pub(crate) fn scheme<B>(request: &Request<B>, origin: Origin) -> Scheme {
    let told = origin.is_proxied.then(|| single(request, "x-forwarded-proto")).flatten();
    match told {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Scheme::HTTPS,
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => Scheme::HTTP,
        _ if origin.is_tls => Scheme::HTTPS,
        _ => Scheme::HTTP,
    }
}

/// Makes the target of a request to the API absolute, with the scheme and host that the client used: links in responses begin with them.
pub(crate) fn make_absolute<B>(request: &mut Request<B>, config: &EdgeConfig, origin: Origin) {
    let public = config.public_url.clone().unwrap_or_else(|| {
        let told = origin.is_proxied.then(|| single(request, "x-forwarded-host")).flatten();
        let named = || request.uri().authority().map(Authority::as_str);
        let host = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let authority = told.or_else(named).or_else(host).and_then(|host| host.parse().ok());
        let authority = authority.unwrap_or_else(|| Authority::from_static("localhost"));
        PublicUrl { scheme: scheme(request, origin), authority }
    });
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if path == "*" {
        // It has no absolute form.
        return;
    }
    let mut parts = hyper::http::uri::Parts::default();
    parts.scheme = Some(public.scheme);
    parts.authority = Some(public.authority);
    parts.path_and_query = Some(path);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Returns the address of the client that a request is of: behind trusted proxies, the last that one of them did not know as a proxy.
pub(crate) fn client_address<B>(request: &Request<B>, config: &EdgeConfig, origin: Origin) -> IpAddr {
    let mut address = origin.address;
    if !origin.is_proxied {
        return address;
    }
    let headers = request.headers().get_all("x-forwarded-for");
    let values: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
    for entry in values.iter().rev().flat_map(|value| value.rsplit(',')) {
        let Ok(before) = entry.trim().parse::<IpAddr>() else { break };
        address = before;
        if !config.is_trusted_proxy(address) {
            break;
        }
    }
    address
}

/// Returns the one value of a header; of a list the first, which the proxy nearest to the client has set.
fn single<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    let value = request.headers().get(name)?.to_str().ok()?;
    Some(value.split(',').next().unwrap_or(value).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EdgeConfig {
        EdgeConfig { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..EdgeConfig::default() }
    }

    fn origin(address: &str, is_tls: bool) -> Origin {
        let address = address.parse().unwrap();
        Origin {
            address,
            is_proxied: config().is_trusted_proxy(address),
            is_tls,
            redirect: None,
            is_inside: false,
        }
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap()
    }

    fn absolute(request: Request<()>, config: &EdgeConfig, origin: Origin) -> String {
        let mut request = request;
        make_absolute(&mut request, config, origin);
        request.uri().to_string()
    }

    #[test]
    fn targets_become_what_the_client_used() {
        let host = [("host", "api.example.org:8443")];
        let forwarded =
            [("host", "inner"), ("x-forwarded-host", "api.example.org"), ("x-forwarded-proto", "https")];
        let stranger = |is_tls| origin("192.0.2.1", is_tls);
        for (request, origin, expected) in [
            (request("/a?b", &host), stranger(false), "http://api.example.org:8443/a?b"),
            (request("/a?b", &host), stranger(true), "https://api.example.org:8443/a?b"),
            (request("http://api.x.y/a", &[]), stranger(true), "https://api.x.y/a"),
            (request("/", &[]), stranger(false), "http://localhost/"),
            (request("/", &forwarded), stranger(false), "http://inner/"),
            (request("/", &forwarded), origin("10.1.1.1", false), "https://api.example.org/"),
            (request("*", &host), stranger(false), "*"),
        ] {
            assert_eq!(absolute(request, &config(), origin), expected);
        }
        let public = EdgeConfig { public_url: Some("https://api.x.org/".parse().unwrap()), ..config() };
        assert_eq!(
            absolute(request("/a", &forwarded), &public, origin("10.1.1.1", false)),
            "https://api.x.org/a"
        );
    }

    #[test]
    fn public_urls_have_no_path() {
        let port = |text: &str| text.parse::<PublicUrl>().map(|url| url.port());
        assert_eq!(port("https://api.x.org"), Ok(None));
        assert_eq!(port("https://api.x.org:443"), Ok(None));
        assert_eq!(port("https://api.x.org:8443/"), Ok(Some(8443)));
        for text in ["api.x.org", "https://api.x.org/a", "ftp://api.x.org", "https://user@api.x.org", ""] {
            assert!(text.parse::<PublicUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn clients_behind_trusted_proxies_are_told_apart() {
        let of = |values: &[&str], from: &str| {
            let headers: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            client_address(&request("/", &headers), &config(), origin(from, false)).to_string()
        };
        assert_eq!(of(&["198.51.100.1"], "10.1.1.1"), "198.51.100.1");
        assert_eq!(
            of(&["1.1.1.1, 198.51.100.1, 10.2.2.2"], "10.1.1.1"),
            "198.51.100.1",
            "the client wrote the first"
        );
        assert_eq!(of(&["1.1.1.1", "198.51.100.1"], "10.1.1.1"), "198.51.100.1");
        assert_eq!(of(&["198.51.100.1"], "192.0.2.1"), "192.0.2.1", "not a proxy of ours");
        assert_eq!(of(&["nonsense"], "10.1.1.1"), "10.1.1.1");
        assert_eq!(of(&[], "10.1.1.1"), "10.1.1.1");
    }
}
