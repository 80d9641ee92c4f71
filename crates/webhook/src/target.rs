//! The URL of a webhook, parsed and checked before it is stored.
//! Internal addresses are refused here if the URL contains one, and at each delivery if its host name resolves to one. The operator
//! can allow networks.

use std::net::IpAddr;

use http::Uri;
use http::uri::Scheme;
use net::{Cidr, is_host_address, is_never_public};

/// Maximum length of a URL, characters.
pub const MAX_URL: usize = 2048;

/// Why a URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The URL cannot be posted to.
    #[error("Invalid webhook URL: {0}")]
    Malformed(&'static str),
    /// The address is private or belongs to this host.
    #[error(
        "Invalid webhook URL: {0} is not a public address; the operator of this server can open its network with \
         --webhook-allow-internal"
    )]
    Internal(IpAddr),
}

/// A parsed and checked URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    /// Host and port for the `Host` header.
    pub(crate) authority: String,
    pub(crate) path: String,
}

impl Target {
    /// Parses and checks a URL. `allowed` are internal networks that the operator allows.
    ///
    /// # Errors
    /// The URL is not an `http` or `https` URL, or contains an address that is not permitted.
    pub fn parse(url: &str, allowed: &[Cidr]) -> Result<Self, TargetError> {
        use TargetError::Malformed;
        if url.len() > MAX_URL {
            return Err(Malformed("it is longer than 2048 characters"));
        }
        let uri: Uri = url.parse().map_err(|_| Malformed("it cannot be parsed"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(Malformed("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or(Malformed("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(Malformed("it must not contain a user name or password"));
        }
        let port = match authority.port() {
            None if authority.as_str() != authority.host() => return Err(Malformed("its port is invalid")),
            None if tls => 443,
            None => 80,
            Some(port) if port.as_u16() == 0 => return Err(Malformed("its port is 0")),
            Some(port) => port.as_u16(),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(Malformed("it has no host"));
        }
        if let Ok(address) = host.parse() {
            permit(address, allowed)?;
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            tls,
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// Checks that deliveries may connect to an address.
///
/// # Errors
/// `Internal`: the address is not public and not in an allowed network.
pub(crate) fn permit(address: IpAddr, allowed: &[Cidr]) -> Result<(), TargetError> {
    let address = address.to_canonical();
    let inside = is_never_public(address) || is_host_address(address);
    if inside && !allowed.iter().any(|network| network.contains(address)) {
        return Err(TargetError::Internal(address));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let target = Target::parse("https://example.com/hook?a=b", &[]).unwrap();
        assert_eq!((target.host.as_str(), target.port, target.tls), ("example.com", 443, true));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("example.com", "/hook?a=b"));
        let target = Target::parse("http://[2606:4700::1]:8080", &[]).unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("2606:4700::1", 8080, "/"));
    }

    #[test]
    fn malformed_urls_are_refused() {
        for bad in [
            "",
            "example.com/hook",
            "ftp://example.com",
            "https://",
            "https://u:p@example.com",
            "http://a b",
            "http://example.com:0/",
            "file:///etc/passwd",
            "http://example.com:99999/",
        ] {
            assert!(matches!(Target::parse(bad, &[]), Err(TargetError::Malformed(_))), "{bad}");
        }
        assert!(Target::parse(&format!("https://example.com/{}", "x".repeat(MAX_URL)), &[]).is_err());
    }

    #[test]
    fn internal_addresses_must_be_allowed() {
        for inside in [
            "http://127.0.0.1",
            "http://[::1]/",
            "https://10.1.2.3",
            "http://169.254.169.254/latest",
            "http://[::ffff:127.0.0.1]/",
        ] {
            assert!(matches!(Target::parse(inside, &[]), Err(TargetError::Internal(_))), "{inside}");
        }
        let allowed = ["10.0.0.0/8".parse().unwrap()];
        assert!(Target::parse("https://10.1.2.3", &allowed).is_ok());
        assert!(Target::parse("https://192.168.1.1", &allowed).is_err());
    }
}
