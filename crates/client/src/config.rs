//! Settings of a client: addresses and credentials.
//! Environment variables and defaults are those of the official SDKs.
//! Debug output does not contain secrets.

use std::fmt;
use std::time::Duration;

use http::Uri;

use crate::{Error, Result};

/// Domains of E2B's own service, which has one host for the traffic of all sandboxes.
const SHARED_HOST_DOMAINS: [&str; 4] = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];
const DEFAULT_DOMAIN: &str = "e2b.app";

/// Settings of a [`Client`](crate::Client). `None` means the default; the environment is read by
/// [`ClientConfig::from_env`] only.
#[derive(Clone)]
pub struct ClientConfig {
    /// API key, `e2b_` and hexadecimal digits.
    pub api_key: Option<String>,
    /// The operator's token. It manages keys and teams, and acts for the default team without a key.
    pub admin_token: Option<String>,
    /// Address of the REST interface; by default `https://api.<domain>`.
    pub api_url: Option<String>,
    /// One address for the traffic of all sandboxes; by default each has a host name of its own.
    pub sandbox_url: Option<String>,
    /// Domain of the service.
    pub domain: Option<String>,
    /// Time limit of requests, except for streams and file contents.
    pub request_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            admin_token: None,
            api_url: None,
            sandbox_url: None,
            domain: None,
            request_timeout: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("admin_token", &self.admin_token.as_ref().map(|_| "…"))
            .field("api_url", &self.api_url)
            .field("sandbox_url", &self.sandbox_url)
            .field("domain", &self.domain)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

impl ClientConfig {
    /// Reads `E2B_API_KEY`, `E2B_API_URL`, `E2B_SANDBOX_URL` and `E2B_DOMAIN`. Empty counts as unset.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            api_key: set("E2B_API_KEY"),
            api_url: set("E2B_API_URL"),
            sandbox_url: set("E2B_SANDBOX_URL"),
            domain: set("E2B_DOMAIN"),
            ..Self::default()
        }
    }

    /// Settings for a server with one address for its API and its sandboxes, as `cofferdam serve` has.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        let url = url.into();
        Self { api_url: Some(url.clone()), sandbox_url: Some(url), ..Self::default() }
    }

    /// Sets the API key.
    #[must_use]
    pub fn with_api_key(self, key: impl Into<String>) -> Self {
        Self { api_key: Some(key.into()), ..self }
    }

    /// Sets the operator's token.
    #[must_use]
    pub fn with_admin_token(self, token: impl Into<String>) -> Self {
        Self { admin_token: Some(token.into()), ..self }
    }

    fn domain(&self) -> &str {
        self.domain.as_deref().unwrap_or(DEFAULT_DOMAIN)
    }

    pub(crate) fn api_base(&self) -> Result<Uri> {
        match &self.api_url {
            Some(url) => base(url),
            None => base(&format!("https://api.{}", self.domain())),
        }
    }

    /// Returns the domain of a sandbox: `assigned` by the server, or the configured one.
    pub(crate) fn sandbox_domain(&self, assigned: Option<String>) -> String {
        assigned.filter(|domain| !domain.is_empty()).unwrap_or_else(|| self.domain().to_owned())
    }

    /// Returns the address of a sandbox's envd for requests with routing headers.
    pub(crate) fn envd_base(&self, id: &str, domain: &str) -> Result<Uri> {
        if self.sandbox_url.is_none() && SHARED_HOST_DOMAINS.contains(&domain) {
            return base(&format!("https://sandbox.{domain}"));
        }
        self.direct_base(id, domain)
    }

    /// Returns the address of a sandbox's envd for requests without routing headers.
    pub(crate) fn direct_base(&self, id: &str, domain: &str) -> Result<Uri> {
        match &self.sandbox_url {
            Some(url) => base(url),
            None => base(&format!("https://{}-{id}.{domain}", envd_api::PORT)),
        }
    }

    /// Whether all addresses are known to be without TLS.
    pub(crate) fn is_plaintext(&self) -> bool {
        let plain = |url: &Option<String>| url.as_ref().is_some_and(|url| url.starts_with("http://"));
        plain(&self.api_url) && plain(&self.sandbox_url)
    }
}

fn base(url: &str) -> Result<Uri> {
    let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| Error::Config(not_a_url(url)))?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        _ => Err(Error::Config(not_a_url(url))),
    }
}

fn not_a_url(url: &str) -> String {
    format!("{url:?} is not an http or https URL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> ClientConfig {
        ClientConfig::from_variables(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn text(uri: Result<Uri>) -> String {
        uri.unwrap().to_string()
    }

    #[test]
    fn addresses_follow_the_contract() {
        let none = config(&[("E2B_DOMAIN", "")]);
        assert_eq!(text(none.api_base()), "https://api.e2b.app/");
        assert_eq!(text(none.envd_base("i1", "e2b.app")), "https://sandbox.e2b.app/");
        assert_eq!(text(none.direct_base("i1", "e2b.app")), "https://49983-i1.e2b.app/");

        let own = config(&[("E2B_DOMAIN", "box.example:8443")]);
        assert_eq!(text(own.api_base()), "https://api.box.example:8443/");
        let domain = own.sandbox_domain(None);
        assert_eq!(text(own.envd_base("i1", &domain)), "https://49983-i1.box.example:8443/");
        assert_eq!(own.sandbox_domain(Some("other.example".into())), "other.example");

        let local = config(&[("E2B_API_URL", "http://a:1/"), ("E2B_SANDBOX_URL", "http://b:2")]);
        assert_eq!(text(local.api_base()), "http://a:1/");
        assert_eq!(text(local.envd_base("i1", "e2b.app")), "http://b:2/");
        assert!(local.is_plaintext() && !own.is_plaintext());
    }

    #[test]
    fn bad_addresses_are_refused() {
        assert!(ClientConfig::at("localhost:3000").api_base().is_err());
        assert!(ClientConfig::at("ftp://x").api_base().is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown =
            format!("{:?}", ClientConfig::at("http://x").with_api_key("e2b_5ec").with_admin_token("5ec"));
        assert!(!shown.contains("5ec"), "{shown}");
    }
}
