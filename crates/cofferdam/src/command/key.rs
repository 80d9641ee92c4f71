//! `cofferdam key`: creates, lists and deletes API keys, for the operator.
//! The local server's admin token is read from its data directory; that of another server is an option.
//! A key is printed once, when it is created: the server stores only a hash.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::Client;

use crate::access::{self, block_on};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Commands for API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Creates a key and prints it. It cannot be printed again.
    Create {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`. [default: the default team]
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// Name of the key.
        #[arg(long, default_value = "cli")]
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists keys, without their secrets.
    List {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`. [default: the default team]
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes a key. Requests with it are refused from then on.
    Delete {
        #[command(flatten)]
        server: OperatorAccess,
        /// Id of the team, from `team list`. [default: the default team]
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// Id of the key, from `key list`.
        id: String,
    },
}

/// A server, and the operator's token for it.
#[derive(Debug, Args)]
pub(crate) struct OperatorAccess {
    #[command(flatten)]
    data: DataDir,
    /// URL of a server on another host; needs --admin-token. [default: the server on this data directory]
    #[arg(long, value_name = "URL", requires = "admin_token")]
    url: Option<String>,
    /// The operator's token. [default: that in the data directory]
    #[arg(long, env = "COFFERDAM_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    admin_token: Option<String>,
}

impl OperatorAccess {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => access::local_server(&self.data)?.url,
        };
        let token = match &self.admin_token {
            Some(token) => token.clone(),
            None => access::admin_token(&self.data)?,
        };
        access::operator_client(&url, &token)
    }
}

pub(crate) fn run(command: KeyCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            KeyCommand::Create { server, team, name, json } => {
                create(&server.client()?, team.as_deref(), &name, json).await
            }
            KeyCommand::List { server, team, json } => list(&server.client()?, team.as_deref(), json).await,
            KeyCommand::Delete { server, team: None, id } => Ok(server.client()?.delete_key(&id).await?),
            KeyCommand::Delete { server, team: Some(team), id } => {
                Ok(server.client()?.delete_key_of(&team, &id).await?)
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, team: Option<&str>, name: &str, json: bool) -> Result<(), Failure> {
    let key = match team {
        Some(team) => client.create_key_for(team, name).await?,
        None => client.create_key(name).await?,
    };
    if json {
        return show::json(&key);
    }
    eprintln!("key {} ({}); it cannot be shown again:", key.details.name, key.details.id);
    show::line(&key.key)
}

async fn list(client: &Client, team: Option<&str>, json: bool) -> Result<(), Failure> {
    let keys = match team {
        Some(team) => client.list_keys_of(team).await?,
        None => client.list_keys().await?,
    };
    if json {
        return show::json(&keys);
    }
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let used = key.last_used.map_or_else(|| "never".to_owned(), show::from_now);
            vec![key.id.clone(), key.name.clone(), key.masked(), show::from_now(key.created_at), used]
        })
        .collect();
    show::table(
        &["ID", "NAME", "KEY", "CREATED", "USED"],
        &rows,
        "no keys; create one with `cofferdam key create`",
    )
}
