//! `network.egressProxy`: the SOCKS5 proxy that a sandbox's connections go through. Wire form, checks and stored form; no sockets.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Maximum length of a user name or password: that of the protocol, bytes.
const MAX_CREDENTIAL: usize = 255;
/// Maximum length of the name in the proxy's certificate, bytes.
const MAX_SERVER_NAME: usize = 253;
/// Maximum length of the authorities of the proxy's certificate, bytes.
const MAX_CA_CERT: usize = 8192;
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// A proxy as a client sends it.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyRequest {
    /// `host:port`.
    pub address: String,
    /// The user, if the proxy wants one.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// TLS to the proxy.
    pub tls: Option<ProxyTlsRequest>,
}

impl fmt::Debug for ProxyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyRequest").field("address", &self.address).finish_non_exhaustive()
    }
}

/// TLS to a proxy as a client sends it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTlsRequest {
    /// Whether the proxy is spoken to by TLS.
    pub enabled: bool,
    /// The name in its certificate. `None` for that of the address.
    pub server_name: Option<String>,
    /// Authorities that replace the system's, PEM.
    pub ca_cert: Option<String>,
}

/// A checked proxy, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxy {
    /// Its name in lower case, or its address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The user, if it wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password, encrypted; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_password: Option<String>,
    /// TLS to the proxy; `None` for plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ProxyTls>,
}

/// How a proxy is spoken to by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTls {
    /// The name in its certificate. `None` for that of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Authorities that replace the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<String>,
}

/// A proxy cannot be used. The texts are part of the wire contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid egress proxy config: {0}")]
pub struct ProxyError(pub String);

impl EgressProxy {
    /// Returns `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]:{}", self.port),
            Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

impl ProxyRequest {
    /// Checks everything but what the host's name leads to. The password is left out of the result.
    ///
    /// # Errors
    /// A field is not valid.
    pub fn check(&self) -> Result<EgressProxy, ProxyError> {
        let (host, port) = parse_address(&self.address)?;
        let username = self.username.clone().filter(|name| !name.is_empty());
        let password = self.password.as_deref().filter(|password| !password.is_empty());
        if username.is_none() && password.is_some() {
            return refuse("egress proxy password must be empty when username is empty");
        }
        // The protocol has no empty passwords.
        if username.is_some() && password.is_none() {
            return refuse("egress proxy password must not be empty when username is not empty");
        }
        for (what, text) in [("username", username.as_deref()), ("password", password)] {
            if text.is_some_and(|text| text.len() > MAX_CREDENTIAL) {
                return refuse(format!("egress proxy {what} must not exceed {MAX_CREDENTIAL} bytes"));
            }
        }
        let tls = self.tls.as_ref().map(ProxyTlsRequest::check).transpose()?.flatten();
        Ok(EgressProxy { host, port, username, sealed_password: None, tls })
    }
}

impl ProxyTlsRequest {
    fn check(&self) -> Result<Option<ProxyTls>, ProxyError> {
        let (server_name, ca_cert) = (self.server_name.clone(), self.ca_cert.clone());
        if !self.enabled {
            return match server_name.is_some() || ca_cert.is_some() {
                true => refuse("egress proxy tls.enabled must be true when other tls fields are set"),
                false => Ok(None),
            };
        }
        if let Some(name) = &server_name {
            let is_valid = name.len() <= MAX_SERVER_NAME
                && (crate::is_host_name(&name.to_ascii_lowercase()) || name.parse::<IpAddr>().is_ok());
            if !is_valid {
                return refuse(format!(
                    "egress proxy tls.serverName must be a host name or address of at most {MAX_SERVER_NAME} bytes"
                ));
            }
        }
        if ca_cert.as_ref().is_some_and(|pem| pem.len() > MAX_CA_CERT || !pem.contains(PEM_BEGIN)) {
            return refuse(format!("egress proxy tls.caCert must be PEM of at most {MAX_CA_CERT} bytes"));
        }
        Ok(Some(ProxyTls { server_name, ca_cert }))
    }
}

/// Splits `host:port`; returns the host in lower case, without brackets.
fn parse_address(address: &str) -> Result<(String, u16), ProxyError> {
    let address = address.trim();
    if address.is_empty() {
        return refuse("egress proxy address must not be empty");
    }
    let malformed = || ProxyError(format!("egress proxy address must be in host:port form: {address}"));
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:").ok_or_else(malformed)?;
            (host.parse::<Ipv6Addr>().map_err(|_| malformed())?.to_string(), port)
        }
        None => {
            let (host, port) = address.split_once(':').ok_or_else(malformed)?;
            if port.contains(':') {
                return Err(malformed());
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    if host.is_empty() {
        return refuse("egress proxy host must not be empty");
    }
    if !crate::is_host_name(&host) && host.parse::<IpAddr>().is_err() {
        return Err(malformed());
    }
    let digits = port.bytes().all(|digit| digit.is_ascii_digit());
    match port.parse() {
        Ok(number) if number != 0 && digits => Ok((host, number)),
        _ => refuse(format!("egress proxy port \"{port}\" is not a valid 1-65535 value")),
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, ProxyError> {
    Err(ProxyError(reason.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(request: Value) -> Result<EgressProxy, String> {
        let request: ProxyRequest = serde_json::from_value(request).unwrap();
        request.check().map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_stored_in_one_form() {
        for (given, stored) in [
            ("Proxy.Example:1080", "proxy.example:1080"),
            (" 1.2.3.4:1 ", "1.2.3.4:1"),
            ("[2001:DB8:0::1]:1080", "[2001:db8::1]:1080"),
        ] {
            assert_eq!(check(json!({"address": given})).unwrap().address(), stored);
        }
        for (given, reason) in [
            ("  ", "address must not be empty"),
            ("proxy.example", "must be in host:port form"),
            ("socks5://proxy.example:1080", "must be in host:port form"),
            ("2001:db8::1:1080", "must be in host:port form"),
            ("[1.2.3.4]:1080", "must be in host:port form"),
            ("a b:1080", "must be in host:port form"),
            (":1080", "host must not be empty"),
            ("proxy.example:", "port \"\" is not a valid"),
            ("proxy.example:0", "port \"0\" is not a valid"),
            ("proxy.example:+1", "port \"+1\" is not a valid"),
            ("proxy.example:65536", "port \"65536\" is not a valid"),
        ] {
            let error = check(json!({"address": given})).unwrap_err();
            assert!(error.starts_with("Invalid egress proxy config: egress proxy "), "{error}");
            assert!(error.contains(reason), "{given}: {error}");
        }
    }

    #[test]
    fn credentials_and_tls_are_checked_and_the_password_is_not_kept() {
        let with = |more: Value| {
            let mut request = json!({"address": "p.example:1"});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check(request)
        };
        let proxy = with(json!({"username": "u", "password": "canary", "tls": {"enabled": true}})).unwrap();
        assert!(!format!("{proxy:?}").contains("canary") && proxy.tls == Some(ProxyTls::default()));
        assert_eq!(
            with(json!({"username": "", "password": "", "tls": {"enabled": false}})).unwrap().tls,
            None
        );
        let long = "x".repeat(256);
        for more in [
            json!({"password": "p"}),
            json!({"username": "u"}),
            json!({"username": long, "password": "p"}),
            json!({"username": "u", "password": long}),
            json!({"tls": {"enabled": false, "serverName": "a.example"}}),
            json!({"tls": {"enabled": true, "serverName": "not a name"}}),
            json!({"tls": {"enabled": true, "caCert": "not PEM"}}),
            json!({"tls": {"enabled": true, "caCert": format!("{PEM_BEGIN}{}", "x".repeat(MAX_CA_CERT))}}),
        ] {
            assert!(with(more.clone()).is_err(), "{more}");
        }
        let request: ProxyRequest =
            serde_json::from_value(json!({"address": "p:1", "username": "u", "password": "canary"})).unwrap();
        assert!(!format!("{request:?}").contains("canary"));
    }
}
