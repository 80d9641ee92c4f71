//! `cofferdam secret`: sets, lists and deletes secrets of the team, which header rules refer to by name.
//! Values are read from a file or from standard input: arguments of a program can be read by others on the host.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::Secret;
use zeroize::Zeroizing;

use crate::access::{block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Commands for secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Gives a secret a value, and creates it if there is none. The value cannot be printed again.
    Set(SetArguments),
    /// Lists secrets, without their values.
    List {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Deletes secrets. Requests that need one are refused from then on.
    Delete {
        #[command(flatten)]
        data: DataDir,
        /// Names or ids of the secrets.
        #[arg(required = true)]
        secrets: Vec<String>,
    },
}

/// A value of a secret.
#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    #[command(flatten)]
    data: DataDir,
    /// Name: letters, digits, `-` and `_`. In rules it is written `${e2b.secrets.NAME}`.
    name: String,
    /// File with the value. A newline at its end is not part of the value. [default: standard input]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Host that the secret may be sent to, or `*.` and a suffix. May be repeated. [default: any that a rule names]
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
}

pub(crate) fn run(command: SecretCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            SecretCommand::Set(arguments) => set(&arguments).await,
            SecretCommand::List { data, json } => list(&data, json).await,
            SecretCommand::Delete { data, secrets } => delete(&data, &secrets).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn set(arguments: &SetArguments) -> Result<(), Failure> {
    let client = team_client(&arguments.data)?;
    let value = Zeroizing::new(match &arguments.file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    });
    let value =
        value.strip_suffix('\n').map_or(value.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    let metadata = (!arguments.hosts.is_empty())
        .then(|| BTreeMap::from([("cofferdam.allowed_hosts".to_owned(), arguments.hosts.join(","))]));
    let Secret { name, current_version, .. } =
        client.set_secret(&arguments.name, value, metadata.as_ref()).await?;
    eprintln!("secret {name} has version {current_version}");
    Ok(())
}

async fn list(data: &DataDir, json: bool) -> Result<(), Failure> {
    let secrets = team_client(data)?.list_secrets().await?;
    if json {
        return show::json(&secrets);
    }
    let rows: Vec<Vec<String>> = secrets
        .into_iter()
        .map(|secret| {
            let hosts =
                secret.metadata.get("cofferdam.allowed_hosts").cloned().unwrap_or_else(|| "any".to_owned());
            vec![
                secret.name,
                secret.current_version.to_string(),
                hosts,
                show::from_now(secret.updated_at),
                secret.id,
            ]
        })
        .collect();
    show::table(
        &["NAME", "VERSION", "HOSTS", "UPDATED", "ID"],
        &rows,
        "no secrets; create one with `cofferdam secret set`",
    )
}

async fn delete(data: &DataDir, secrets: &[String]) -> Result<(), Failure> {
    let client = team_client(data)?;
    for secret in secrets {
        if !client.delete_secret(secret).await? {
            return Err(Failure::new(format!("there is no secret {secret}")));
        }
    }
    Ok(())
}
