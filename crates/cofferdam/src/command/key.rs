//! `cofferdam key`: API keys, for the operator.
//! The local server's admin token is found in its data directory; another server's is named.
//! A key is printed once, when it is made: the server keeps only a hash.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::Client;

use crate::access::{self, block_on};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes a key and prints it, this once.
    Create {
        #[command(flatten)]
        server: Operated,
        /// Team by its id, from `team list`; by default the default team.
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// What the key is for.
        #[arg(long, default_value = "cli")]
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists keys, without their secrets.
    List {
        #[command(flatten)]
        server: Operated,
        /// Team by its id, from `team list`; by default the default team.
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes a key; who uses it is refused from then on.
    Delete {
        #[command(flatten)]
        server: Operated,
        /// Team by its id, from `team list`; by default the default team.
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// The key's id, from `key list`.
        id: String,
    },
}

/// A server and the right to run it.
#[derive(Debug, Args)]
pub(crate) struct Operated {
    #[command(flatten)]
    data: DataDir,
    /// Server elsewhere; needs --admin-token.
    #[arg(long, value_name = "URL", requires = "admin_token")]
    url: Option<String>,
    /// Its operator's token, if not the one in the data directory.
    #[arg(long, env = "COFFERDAM_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    admin_token: Option<String>,
}

impl Operated {
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
    eprintln!("key {} ({}); it is shown this once:", key.details.name, key.details.id);
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
        &["ID", "NAME", "KEY", "MADE", "USED"],
        &rows,
        "no keys; make one with `cofferdam key create`",
    )
}
