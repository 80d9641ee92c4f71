//! Servers that run elsewhere and are reached over streamable HTTP.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;

use crate::error::Error;
use crate::limits::START_TIMEOUT;

/// A connection to a remote server that sends these headers.
///
/// # Errors
/// A header is not valid.
pub(crate) fn transport(
    server: &str,
    url: &str,
    headers: &[(String, String)],
) -> Result<StreamableHttpClientTransport<reqwest::Client>, Error> {
    let bad = |reason: String| Error::Start { server: server.to_owned(), reason };
    let mut all = HashMap::new();
    for (name, value) in headers {
        let name = HeaderName::try_from(name).map_err(|error| bad(format!("header {name}: {error}")))?;
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| bad(format!("the value for the header {name} has other than visible characters")))?;
        value.set_sensitive(true);
        all.insert(name, value);
    }
    // A secret is for the host that it was given for: redirections could carry it to others.
    let client = reqwest::Client::builder()
        .connect_timeout(START_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let client = client.map_err(|error| bad(error.to_string()))?;
    let config = StreamableHttpClientTransportConfig::with_uri(url)
        .custom_headers(all)
        .reinit_on_expired_session(true);
    Ok(StreamableHttpClientTransport::with_client(client, config))
}
