//! Settings of registries: mirrors, hosts without TLS and allowed networks, by the operator; credentials, by the caller.
//! Mirrors and hosts without TLS may be at private addresses, since the operator named them; other hosts may not.
//! Credentials are never printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use http::Uri;
use net::Cidr;

use crate::OciError;
use crate::reference::Reference;

/// The operator's settings of registries.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Mirrors, by the host of the registry as in references (`docker.io`, `ghcr.io`, `host:5000`).
    pub mirrors: BTreeMap<String, Mirror>,
    /// Hosts (with their port if it is not 80) that are reached without TLS.
    pub insecure: BTreeSet<String>,
    /// Internal networks that registries may be in.
    pub allowed: Vec<Cidr>,
    /// The endpoint for ECR tokens, instead of `https://api.ecr.<region>.amazonaws.com`.
    pub ecr_endpoint: Option<Mirror>,
}

/// A mirror's URL: `http` or `https`, a host, and optionally a port and a prefix of repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Scheme, host and port.
    pub(crate) origin: RegistryHost,
    /// Prefix of repositories, without slashes at its ends; may be empty.
    pub(crate) prefix: String,
}

impl FromStr for Mirror {
    type Err = OciError;

    fn from_str(url: &str) -> Result<Self, OciError> {
        let fail = |why| OciError::Mirror { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| fail("it cannot be read"))?;
        let origin = RegistryHost::of(&uri).map_err(fail)?;
        if uri.query().is_some() {
            return Err(fail("it has a query"));
        }
        Ok(Self { origin, prefix: uri.path().trim_matches('/').to_owned() })
    }
}

/// Scheme, host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegistryHost {
    pub(crate) is_tls: bool,
    /// The host, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Host and port as in a URL, for messages and the `Host` header.
    pub(crate) authority: String,
}

impl RegistryHost {
    pub(crate) fn of(uri: &Uri) -> Result<Self, &'static str> {
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it begins neither with https:// nor with http://"),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it holds a user name or password");
        }
        Self::new(is_tls, authority.as_str()).ok_or("its host or port is none")
    }

    fn new(is_tls: bool, text: &str) -> Option<Self> {
        let authority: http::uri::Authority = text.parse().ok()?;
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str() != authority.host() => return None,
            None if is_tls => 443,
            None => 80,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || port == 0 {
            return None;
        }
        Some(Self { is_tls, host, port, authority: authority.as_str().to_owned() })
    }
}

impl Registries {
    /// Returns the host and the repository to request for a reference.
    pub(crate) fn route(&self, reference: &Reference) -> Result<(RegistryHost, String), OciError> {
        let registry = reference.registry();
        if let Some(mirror) = self.mirrors.get(registry) {
            let repository = [mirror.prefix.as_str(), reference.repository()];
            let repository = repository.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            return Ok((mirror.origin.clone(), repository.join("/")));
        }
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let origin = RegistryHost::new(!self.insecure.contains(registry), host);
        let origin = origin.ok_or(OciError::Reference {
            text: reference.as_given().to_owned(),
            why: "its registry is not a host name with perhaps a port",
        })?;
        Ok((origin, reference.repository().to_owned()))
    }

    /// Returns whether the operator named this host and port, so that it may be at any address.
    pub(crate) fn is_named(&self, origin: &RegistryHost) -> bool {
        let is_it = |other: &RegistryHost| other.host == origin.host && other.port == origin.port;
        self.mirrors.values().chain(&self.ecr_endpoint).any(|mirror| is_it(&mirror.origin))
            || self.is_insecure(origin)
    }

    /// Returns whether the operator allows this host without TLS.
    pub(crate) fn is_insecure(&self, origin: &RegistryHost) -> bool {
        let is_it = |other: &RegistryHost| other.host == origin.host && other.port == origin.port;
        let named = self.insecure.iter().filter_map(|host| RegistryHost::new(false, host));
        let mirrors = self.mirrors.values().chain(&self.ecr_endpoint).map(|mirror| mirror.origin.clone());
        named.chain(mirrors.filter(|origin| !origin.is_tls)).any(|other| is_it(&other))
    }
}

/// Credentials for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None.
    #[default]
    Anonymous,
    /// A user's name and password, or access token.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// An AWS access key, for ECR.
    Aws {
        /// Its id.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
        /// The region of the registry.
        region: String,
    },
    /// A service account of Google Cloud, for Artifact Registry.
    Gcp {
        /// Its key, as downloaded.
        service_account_json: String,
    },
}

/// Prints no secrets.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic",
            Self::Aws { .. } => "Aws",
            Self::Gcp { .. } => "Gcp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_replace_registries() {
        let mut registries = Registries::default();
        registries.mirrors.insert("docker.io".to_owned(), "http://10.0.0.1:5000/hub/".parse().unwrap());
        registries.insecure.insert("[::1]:5000".to_owned());
        let route = |text: &str| registries.route(&text.parse().unwrap()).unwrap();
        let (origin, repository) = route("debian");
        assert_eq!((origin.authority.as_str(), origin.is_tls), ("10.0.0.1:5000", false));
        assert_eq!(repository, "hub/library/debian");
        assert!(registries.is_named(&origin) && registries.is_insecure(&origin));
        let (origin, repository) = route("ghcr.io/a/b");
        assert_eq!((origin.port, origin.is_tls, repository.as_str()), (443, true, "a/b"));
        assert!(!registries.is_named(&origin));
        let (origin, _) = route("[::1]:5000/a");
        assert_eq!((origin.host.as_str(), origin.port, origin.is_tls), ("::1", 5000, false));
        assert_eq!(
            Registries::default().route(&"debian".parse().unwrap()).unwrap().0.host,
            "registry-1.docker.io"
        );
    }

    #[test]
    fn invalid_mirrors_are_refused() {
        for bad in
            ["", "host", "ftp://host", "https://u:p@host", "https://host:0", "https://host/a?b", "https://"]
        {
            assert!(matches!(bad.parse::<Mirror>(), Err(OciError::Mirror { .. })), "{bad}");
        }
    }

    #[test]
    fn credentials_do_not_print() {
        let secret = Credentials::Basic { username: "u".to_owned(), password: "hunter2".to_owned() };
        assert_eq!(format!("{secret:?}"), "Basic");
    }
}
