//! Requests to the REST interface: addresses, credentials, JSON bodies. It does not know the routes.
//! All percent-encoding of path segments and query values happens here.

use bytes::Bytes;
use connectrpc::client::ClientBody;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::transport::{self, Transport};
use crate::{ClientConfig, Error, Result};

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes a path segment or query value.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Makes a query string with its question mark; empty if there are no pairs.
pub(crate) fn query(pairs: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.push_str(&encode(value));
    }
    text
}

/// The REST interface of a server.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    transport: Transport,
    base: Uri,
    api_key: Option<HeaderValue>,
    admin_token: Option<HeaderValue>,
}

/// Whose credential a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// A team's API key, or the admin token for the default team.
    Team,
    /// The operator's admin token.
    Operator,
}

impl Rest {
    pub(crate) fn new(config: &ClientConfig, transport: Transport) -> Result<Self> {
        Ok(Self {
            transport,
            base: config.api_base()?,
            api_key: secret("API key", config.api_key.as_deref())?,
            admin_token: secret("admin token", config.admin_token.as_deref())?,
        })
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) fn base(&self) -> &Uri {
        &self.base
    }

    /// Sends a request without a body.
    pub(crate) async fn call(&self, who: As, method: Method, path: &str) -> Result<Response<Bytes>> {
        self.send(self.request(who, method, path)?, transport::empty_body()).await
    }

    /// Sends a request with a JSON body.
    pub(crate) async fn call_with(
        &self,
        who: As,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<Response<Bytes>> {
        self.call_once(who, method, path, body, None).await
    }

    /// Sends a request with a JSON body. The server carries it out only once for each idempotency key.
    pub(crate) async fn call_once(
        &self,
        who: As,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
        key: Option<&str>,
    ) -> Result<Response<Bytes>> {
        let mut request = self.request(who, method, path)?.header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.send(request, transport::json_body(body)).await
    }

    async fn send(&self, request: http::request::Builder, body: ClientBody) -> Result<Response<Bytes>> {
        let request = request.header(USER_AGENT, transport::USER_AGENT).body(body);
        let request = request.map_err(|error| Error::Config(error.to_string()))?;
        self.transport.exchange(request).await
    }

    /// Begins a request with its address and credential.
    pub(crate) fn request(&self, who: As, method: Method, path: &str) -> Result<http::request::Builder> {
        let (name, credential) = self.credential(who)?;
        let uri = transport::join(&self.base, path)?;
        Ok(Request::builder().method(method).uri(uri).header(name, credential))
    }

    fn credential(&self, who: As) -> Result<(&'static str, HeaderValue)> {
        let admin = self.admin_token.as_ref().map(|token| ("x-admin-token", token));
        let key = self.api_key.as_ref().map(|key| ("x-api-key", key));
        let (chosen, missing) = match who {
            As::Team => (key.or(admin), "an API key is needed: set E2B_API_KEY"),
            As::Operator => (admin, "the operator's admin token is needed"),
        };
        let (name, value) = chosen.ok_or_else(|| Error::Config(missing.to_owned()))?;
        Ok((name, value.clone()))
    }
}

/// Makes a header value that debug output hides.
pub(crate) fn secret(what: &str, text: Option<&str>) -> Result<Option<HeaderValue>> {
    let Some(text) = text else { return Ok(None) };
    let mut value = HeaderValue::from_str(text.trim())
        .map_err(|_| Error::Config(format!("the {what} contains characters that HTTP headers cannot")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded() {
        assert_eq!(encode("team/name:tag"), "team%2Fname%3Atag");
        assert_eq!(query(&[]), "");
        assert_eq!(query(&[("a", "x y".into()), ("b", "k=v&w".into())]), "?a=x%20y&b=k%3Dv%26w");
    }
}
