//! Clients for commands: which server they connect to, and with which credential.
//! E2B's environment variables come first, as in the official tools; without them it is the server on this host.
//! The key that `quickstart` stored on this host is never sent to a server that a variable names.

use std::fs;
use std::future::Future;
use std::path::Path;

use cofferdam_client::{Client, ClientConfig};

use crate::failure::Failure;
use crate::paths::{DataDir, ServerNote};

/// Runs a future to its end on a new runtime with one thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// Returns a client with a team's API key.
///
/// # Errors
/// No server or no key is found; the message has the remedy.
pub(crate) fn team_client(data: &DataDir) -> Result<Client, Failure> {
    let mut config = ClientConfig::from_env();
    if config.api_url.is_none() && config.domain.is_none() {
        let local = local_server(data)?;
        config.sandbox_url.get_or_insert(local.url.clone());
        config.api_url = Some(local.url);
        if config.api_key.is_none() {
            config.api_key = read_secret(&data.quickstart_key());
        }
    }
    if config.sandbox_url.is_none() && config.domain.is_none() {
        // One address serves the API and sandboxes, unless a variable says otherwise.
        config.sandbox_url.clone_from(&config.api_url);
    }
    if config.api_key.is_none() {
        return Err(Failure::new(
            "no API key: set E2B_API_KEY; `cofferdam key create` makes one on the server's host",
        ));
    }
    Ok(Client::new(config)?)
}

/// Returns the server that runs on a data directory of this host.
pub(crate) fn local_server(data: &DataDir) -> Result<ServerNote, Failure> {
    ServerNote::read(&data.server_note()).ok_or_else(|| {
        Failure::new(format!(
            "no server runs on {}; start one with `cofferdam serve`, name its data directory with --data-dir, \
             or another server with E2B_API_URL",
            data.data_dir.display()
        ))
    })
}

/// Returns a client with the operator's token.
pub(crate) fn operator_client(url: &str, token: &str) -> Result<Client, Failure> {
    Ok(Client::new(ClientConfig::at(url).with_admin_token(token))?)
}

/// Reads the operator's token from a data directory.
pub(crate) fn admin_token(data: &DataDir) -> Result<String, Failure> {
    let path = data.admin_token();
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::new(format!(
            "{}: {error}; the server writes its admin token there, readable by root alone",
            path.display()
        ))
    })?;
    Ok(text.trim().to_owned())
}

/// Reads a secret from a file, if there is one.
pub(crate) fn read_secret(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
