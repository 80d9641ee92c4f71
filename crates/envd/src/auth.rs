//! Who sends a request, and as which user it acts. The rules for tokens and signatures are envd-api's.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use envd_api::access::{AuthError, SignedLink, authorize, check_link, same, token};
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The server, which has checked what it passes on. Nobody else can connect from its address.
    Server,
    /// A program in the sandbox.
    Sandbox,
    /// Unknown, as envd was not told the server's address: it is run on its own.
    Unknown,
}

impl Peer {
    /// Returns who connects from an address.
    pub fn of(address: SocketAddr, server: Option<IpAddr>) -> Self {
        match server {
            None => Self::Unknown,
            Some(server) if server == address.ip() => Self::Server,
            Some(_) => Self::Sandbox,
        }
    }
}

/// Returns the user that a request names by Basic authorization.
pub fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(credentials.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    // Clients send no password, so a colon before the last one belongs to the name: `1000:1000`.
    let user = decoded.strip_suffix(':').or_else(|| decoded.split_once(':').map(|(user, _)| user))?;
    Some(user.to_owned()).filter(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_given_address_is_the_server() {
        let server = Some(IpAddr::from([169, 254, 0, 22]));
        let peer = |address: [u8; 4], server| Peer::of((address, 1).into(), server);
        assert_eq!(peer([169, 254, 0, 22], server), Peer::Server);
        assert_eq!(peer([127, 0, 0, 1], server), Peer::Sandbox);
        assert_eq!(peer([127, 0, 0, 1], None), Peer::Unknown);
    }

    #[test]
    fn reads_the_basic_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(basic_user(&headers), None);
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic MTAwMDoxMDAwOg=="));
        assert_eq!(basic_user(&headers).as_deref(), Some("1000:1000"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjo="));
        assert_eq!(basic_user(&headers), Some("user".to_owned()));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer dXNlcjo="));
        assert_eq!(basic_user(&headers), None);
    }
}
