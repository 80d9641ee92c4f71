//! `cofferdam ssh-key`: the public keys by which the team's SSH clients are known.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::access::{self, block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Commands for public keys.
#[derive(Debug, Subcommand)]
pub(crate) enum SshKeyCommand {
    /// Adds a public key: whoever has its private key reaches all sandboxes of the team by SSH.
    Add {
        #[command(flatten)]
        data: DataDir,
        /// File of the public key, such as `~/.ssh/id_ed25519.pub`.
        file: PathBuf,
        /// Name of the key. [default: the comment in the file]
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists public keys.
    List {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes public keys. Sessions that they opened stay.
    Delete {
        #[command(flatten)]
        data: DataDir,
        /// Ids of the keys, from `ssh-key list`.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

pub(crate) fn run(command: SshKeyCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            SshKeyCommand::Add { data, file, name } => {
                let text = std::fs::read_to_string(&file)
                    .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
                let key = team_client(&data)?.add_ssh_key(name.as_deref(), &text).await?;
                show::line(&format!("{} {} ({})", key.id, key.fingerprint, key.name))
            }
            SshKeyCommand::List { data, json } => list(&data, json).await,
            SshKeyCommand::Delete { data, ids } => {
                let client = team_client(&data)?;
                for id in ids {
                    client.delete_ssh_key(&id).await?;
                }
                Ok(())
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(data: &DataDir, json: bool) -> Result<(), Failure> {
    let keys = team_client(data)?.list_ssh_keys().await?;
    if json {
        return show::json(&keys);
    }
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            vec![key.id.clone(), key.name.clone(), key.fingerprint.clone(), show::from_now(key.created_at)]
        })
        .collect();
    show::table(
        &["ID", "NAME", "FINGERPRINT", "ADDED"],
        &rows,
        "no keys; add one with `cofferdam ssh-key add`",
    )
}

/// `cofferdam sandbox ssh`: prints how to reach a sandbox of the server on this host.
pub(crate) fn line(data: &DataDir, id: &str) -> Result<ExitCode, Failure> {
    let server = access::local_server(data)?;
    let address: SocketAddr = std::fs::read_to_string(data.ssh_note())
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::new("the server does not serve SSH: start it with --ssh-listen"))?;
    let host = match (address.ip().is_unspecified(), server.domain) {
        (true, Some(domain)) => domain.split(':').next().unwrap_or_default().to_owned(),
        (true, None) => "127.0.0.1".to_owned(),
        (false, _) => address.ip().to_string(),
    };
    show::line(&format!("ssh -p {} {id}@{host}", address.port()))?;
    Ok(ExitCode::SUCCESS)
}
