//! Checks that a request is for the host of its connection. Otherwise a program could have a secret sent to another site that the same
//! server hosts.

use http::header::HOST;
use http::{Method, Request, Version};

use crate::refusal::Refusal;

/// Checks a request on a connection to this host.
///
/// # Errors
/// It names another host or none, or is meant for a proxy.
pub(crate) fn check<B>(request: &Request<B>, host: &str, port: u16) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Proxying);
    }
    let is_h2 = request.version() == Version::HTTP_2;
    let mut hosts = request.headers().get_all(HOST).iter();
    let (header, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Refusal::Misdirected);
    }
    let header = match header.map(|value| value.to_str()) {
        Some(Err(_)) => return Err(Refusal::Misdirected),
        Some(Ok(value)) => Some(value),
        None => None,
    };
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    if !is_h2 && (authority.is_some() || request.uri().scheme().is_some()) {
        return Err(Refusal::Proxying);
    }
    // HTTP/2 names the host in either place; if in both, they must agree.
    let named: Vec<&str> = authority.into_iter().chain(header).collect();
    let is_right = !named.is_empty() && named.iter().all(|name| is_same(name, host, port));
    if is_right { Ok(()) } else { Err(Refusal::Misdirected) }
}

/// Whether an authority means the host, with its port or none.
fn is_same(authority: &str, host: &str, port: u16) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, digits)) if digits.parse() == Ok(port) && !digits.starts_with(['+', '0']) => name,
        _ => authority,
    };
    name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Version, method: &str, uri: &str, hosts: &[&str]) -> Option<u16> {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let checked = check(&request.body(()).unwrap(), "a.example", 443);
        checked.err().map(|refusal| refusal.response().status().as_u16())
    }

    #[test]
    fn only_the_host_of_the_connection_is_served() {
        let h1 = |method: &str, uri: &str, hosts: &[&str]| status(Version::HTTP_11, method, uri, hosts);
        let h2 = |method: &str, uri: &str, hosts: &[&str]| status(Version::HTTP_2, method, uri, hosts);
        for host in ["a.example", "A.Example", "a.example:443", "a.example."] {
            assert_eq!(h1("GET", "/", &[host]), None, "{host}");
        }
        for hosts in [
            &["b.example"][..],
            &[],
            &["a.example", "a.example"],
            &["a.example", "b.example"],
            &["a.example:80"],
            &["a.example:0443"],
            &["user@a.example"],
            &["a.example.b.example"],
            &[""],
            &["a.example, b.example"],
        ] {
            assert_eq!(h1("GET", "/", hosts), Some(421), "{hosts:?}");
        }
        assert_eq!(h1("CONNECT", "a.example:443", &["a.example"]), Some(405));
        assert_eq!(h1("GET", "https://a.example/", &["a.example"]), Some(405));
        assert_eq!(h1("GET", "http://b.example/", &["a.example"]), Some(405));
        assert_eq!(h1("OPTIONS", "*", &["a.example"]), None);
        assert_eq!(h2("GET", "https://a.example/", &[]), None);
        assert_eq!(h2("GET", "https://a.example:443/", &["a.example"]), None);
        assert_eq!(h2("GET", "https://b.example/", &[]), Some(421));
        assert_eq!(h2("GET", "https://a.example/", &["b.example"]), Some(421));
        assert_eq!(h2("GET", "https://b.example/", &["a.example"]), Some(421));
        assert_eq!(h2("GET", "https://user@a.example/", &[]), Some(421));
        assert_eq!(h2("CONNECT", "a.example:443", &[]), Some(405));
    }
}
