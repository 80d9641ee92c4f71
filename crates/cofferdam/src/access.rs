//! Which server a command talks to, and as whom.
//! E2B's variables come first, as with the official tools; without them it is the server on this machine.
//! A key kept on this machine is never sent to a server that was named by hand.

use std::fs;
use std::future::Future;
use std::path::Path;

use cofferdam_client::{Client, ClientConfig};

use crate::failure::Failure;
use crate::paths::{DataDir, ServerNote};

/// Runs a command's asynchronous part.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// A client for sandboxes.
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
        // One address serves both, unless said otherwise.
        config.sandbox_url.clone_from(&config.api_url);
    }
    if config.api_key.is_none() {
        return Err(Failure::new(
            "no API key: set E2B_API_KEY; `cofferdam key create` makes one on the server's machine",
        ));
    }
    Ok(Client::new(config)?)
}

/// The server that runs on this machine's data directory.
pub(crate) fn local_server(data: &DataDir) -> Result<ServerNote, Failure> {
    ServerNote::read(&data.server_note()).ok_or_else(|| {
        Failure::new(format!(
            "no server runs on {}; start one with `cofferdam serve`, name its data directory with --data-dir, \
             or another server with E2B_API_URL",
            data.data_dir.display()
        ))
    })
}

/// A client with the operator's rights on a server.
pub(crate) fn operator_client(url: &str, token: &str) -> Result<Client, Failure> {
    Ok(Client::new(ClientConfig::at(url).with_admin_token(token))?)
}

/// The operator's token of a data directory.
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

/// A secret kept in a file, if there is one.
pub(crate) fn read_secret(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
