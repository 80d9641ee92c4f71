//! `cofferdam volume`: creates, lists, copies and deletes volumes, and copies files to and from them.
//! A volume is named by its name or id; a path in it is `<volume>:<path>`.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use cofferdam_client::{Client, Error, Volume};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use crate::access::{block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// How much of a file is sent at once, bytes.
const CHUNK: usize = 256 << 10;

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Creates an empty volume and prints its id.
    Create {
        #[command(flatten)]
        data: DataDir,
        /// Its name: letters, digits, `-` and `_`.
        name: String,
        /// Size at which writes fail, MiB. [default: what the disk holds]
        #[arg(long, value_name = "MIB")]
        size_limit: Option<u32>,
    },
    /// Lists the team's volumes, oldest first.
    List {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows how much room a volume takes.
    Show {
        #[command(flatten)]
        data: DataDir,
        /// Name or id.
        volume: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sets the size at which writes to a volume fail.
    Limit {
        #[command(flatten)]
        data: DataDir,
        /// Name or id.
        volume: String,
        /// MiB, or `none`.
        #[arg(value_parser = size_limit)]
        size_limit: SizeLimit,
    },
    /// Copies a volume, as it is now, to a new one, and prints the new one's id. Instant on btrfs.
    Snapshot {
        #[command(flatten)]
        data: DataDir,
        /// Name or id.
        volume: String,
        /// Name of the new volume.
        name: String,
    },
    /// Deletes volumes with their content.
    Delete {
        #[command(flatten)]
        data: DataDir,
        /// Names or ids.
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Lists a directory of a volume.
    Ls {
        #[command(flatten)]
        data: DataDir,
        /// `<volume>:<path>`, or a volume for its top directory.
        path: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copies a file to or from a volume.
    Cp(CopyArguments),
}

/// What to copy.
#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    #[command(flatten)]
    data: DataDir,
    /// A file, or `<volume>:<path>`. `-` is standard input.
    from: String,
    /// A file or directory, or `<volume>:<path>`. `-` is standard output.
    to: String,
    /// Copy a directory with everything in it.
    #[arg(long, short)]
    recursive: bool,
}

/// A number, or `None` for `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SizeLimit(Option<u32>);

fn size_limit(text: &str) -> Result<SizeLimit, String> {
    match text {
        "none" => Ok(SizeLimit(None)),
        text => {
            text.parse().map(|number| SizeLimit(Some(number))).map_err(|_| "a number, or none".to_owned())
        }
    }
}

pub(crate) fn run(command: VolumeCommand) -> Result<ExitCode, Failure> {
    block_on(async {
        match command {
            VolumeCommand::Create { data, name, size_limit } => {
                show::line(&team_client(&data)?.create_volume(&name, size_limit).await?.id)
            }
            VolumeCommand::List { data, json } => list(&team_client(&data)?, json).await,
            VolumeCommand::Show { data, volume, json } => show_one(&team_client(&data)?, &volume, json).await,
            VolumeCommand::Limit { data, volume, size_limit: SizeLimit(limit) } => {
                let client = team_client(&data)?;
                let volume = client.find_volume(&volume).await?;
                Ok(client.limit_volume(&volume.id, limit).await.map(drop)?)
            }
            VolumeCommand::Snapshot { data, volume, name } => {
                let client = team_client(&data)?;
                let volume = client.find_volume(&volume).await?;
                show::line(&client.copy_volume(&volume.id, &name).await?.id)
            }
            VolumeCommand::Delete { data, volumes } => {
                let client = team_client(&data)?;
                for volume in volumes {
                    client.delete_volume(&client.find_volume(&volume).await?.id).await?;
                }
                Ok(())
            }
            VolumeCommand::Ls { data, path, json } => ls(&team_client(&data)?, &path, json).await,
            VolumeCommand::Cp(arguments) => cp(&arguments).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let volumes = client.list_volumes().await?;
    if json {
        return show::json(&volumes);
    }
    let rows: Vec<_> = volumes.into_iter().map(|volume| vec![volume.name, volume.id]).collect();
    show::table(&["NAME", "ID"], &rows, "no volumes")
}

async fn show_one(client: &Client, volume: &str, json: bool) -> Result<(), Failure> {
    let usage = client.volume_usage(&client.find_volume(volume).await?.id).await?;
    if json {
        return show::json(&usage);
    }
    let limit = match (usage.size_limit_mb, usage.limit_enforced) {
        (None, _) => "none".to_owned(),
        (Some(limit), true) => format!("{limit} MiB"),
        (Some(limit), false) => format!("{limit} MiB, which this server's storage does not enforce"),
    };
    show::line(&format!("name:  {}", usage.volume.name))?;
    show::line(&format!("id:    {}", usage.volume.id))?;
    show::line(&format!("used:  {:.1} MiB", usage.used_bytes as f64 / f64::from(1 << 20)))?;
    show::line(&format!("limit: {limit}"))
}

async fn ls(client: &Client, path: &str, json: bool) -> Result<(), Failure> {
    let (volume, path) = path.split_once(':').unwrap_or((path, "/"));
    let volume = client.find_volume(volume).await?;
    let entries = client.volume_files(&volume.id).list(if path.is_empty() { "/" } else { path }, 1).await?;
    if json {
        return show::json(&entries);
    }
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let name =
                entry.target.as_ref().map_or(entry.name.clone(), |to| format!("{} -> {to}", entry.name));
            vec![
                entry.kind,
                format!("{:04o}", entry.mode),
                format!("{}:{}", entry.uid, entry.gid),
                entry.size.to_string(),
                show::from_now(entry.modified),
                name,
            ]
        })
        .collect();
    show::table(&["TYPE", "MODE", "OWNER", "BYTES", "CHANGED", "NAME"], &rows, "nothing in it")
}

/// One side of a copy.
enum Side {
    Local(PathBuf),
    Remote(Volume, String),
}

async fn side(client: &Client, text: &str) -> Result<Side, Failure> {
    // A file whose name has a colon is given as ./name.
    let Some((volume, path)) = text.split_once(':').filter(|(volume, _)| !volume.contains('/')) else {
        return Ok(Side::Local(text.into()));
    };
    Ok(Side::Remote(client.find_volume(volume).await?, path.to_owned()))
}

async fn cp(arguments: &CopyArguments) -> Result<(), Failure> {
    let client = &team_client(&arguments.data)?;
    match (side(client, &arguments.from).await?, side(client, &arguments.to).await?) {
        (Side::Local(from), Side::Remote(volume, to)) => {
            let to = target_in_volume(client, &volume, &from, &to).await?;
            if arguments.recursive {
                upload_tree(client, &volume, &from, &to).await
            } else {
                upload(client, &volume, &from, &to).await
            }
        }
        (Side::Remote(volume, from), Side::Local(to)) => {
            let to = target_on_disk(&from, to);
            if arguments.recursive {
                download_tree(client, &volume, &from, &to).await
            } else {
                download(client, &volume, &from, &to).await
            }
        }
        _ => Err(Failure::new("one side must be `<volume>:<path>`, and the other a file of this machine")),
    }
}

/// As `cp` does it: a directory that exists takes the copy.
async fn target_in_volume(
    client: &Client,
    volume: &Volume,
    from: &Path,
    to: &str,
) -> Result<String, Failure> {
    let into = to.is_empty() || to.ends_with('/');
    let is_dir = into
        || match client.volume_files(&volume.id).stat(to).await {
            Ok(entry) => entry.kind == "directory",
            Err(Error::NotFound(_)) => false,
            Err(error) => return Err(error.into()),
        };
    let name = from.file_name().map(|name| name.to_string_lossy().into_owned());
    match name.filter(|name| is_dir && name != "-") {
        Some(name) => Ok(format!("{}/{name}", to.trim_end_matches('/'))),
        None => Ok(to.to_owned()),
    }
}

fn target_on_disk(from: &str, to: PathBuf) -> PathBuf {
    match from.trim_end_matches('/').rsplit('/').next() {
        Some(name) if to.is_dir() && !name.is_empty() => to.join(name),
        _ => to,
    }
}

async fn upload(client: &Client, volume: &Volume, from: &Path, to: &str) -> Result<(), Failure> {
    let files = client.volume_files(&volume.id);
    let at = |error: io::Error| Failure::new(format!("{}: {error}", from.display()));
    if from == Path::new("-") {
        let input = tokio::fs::File::from_std(io::stdin().as_fd().try_clone_to_owned()?.into());
        return Ok(files.write_stream(to, None, ReaderStream::with_capacity(input, CHUNK)).await?);
    }
    let file = tokio::fs::File::open(from).await.map_err(at)?;
    let metadata = file.metadata().await.map_err(at)?;
    if metadata.is_dir() {
        return Err(Failure::new(format!("{} is a directory; copy it with --recursive", from.display())));
    }
    let mode = Some(metadata.permissions().mode() & 0o7777);
    Ok(files.write_stream(to, mode, ReaderStream::with_capacity(file, CHUNK)).await?)
}

async fn upload_tree(client: &Client, volume: &Volume, from: &Path, to: &str) -> Result<(), Failure> {
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        if !fs::symlink_metadata(&from)?.is_dir() {
            upload(client, volume, &from, &to).await?;
            continue;
        }
        client.volume_files(&volume.id).make_dir(if to.is_empty() { "/" } else { &to }).await?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Failure::new(format!("{}: the name is not UTF-8", entry.path().display())));
            };
            if kind.is_dir() || kind.is_file() {
                pending.push((entry.path(), format!("{to}/{name}")));
            } else {
                eprintln!("{}: neither a file nor a directory, not copied", entry.path().display());
            }
        }
    }
    Ok(())
}

async fn download(client: &Client, volume: &Volume, from: &str, to: &Path) -> Result<(), Failure> {
    let mut pieces = client.volume_files(&volume.id).read_stream(from).await?;
    let mut out = if to == Path::new("-") {
        tokio::fs::File::from_std(io::stdout().as_fd().try_clone_to_owned()?.into())
    } else {
        let file = tokio::fs::File::create(to).await;
        file.map_err(|error| Failure::new(format!("{}: {error}", to.display())))?
    };
    while let Some(piece) = pieces.next().await {
        out.write_all(&piece?).await?;
    }
    Ok(out.flush().await?)
}

async fn download_tree(client: &Client, volume: &Volume, from: &str, to: &Path) -> Result<(), Failure> {
    let files = client.volume_files(&volume.id);
    let mut pending = vec![(if from.is_empty() { "/".to_owned() } else { from.to_owned() }, to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        fs::create_dir_all(&to)?;
        for entry in files.list(&from, 1).await? {
            // A sandbox chooses names, and a list is made of them.
            if entry.name.contains('/') || matches!(entry.name.as_str(), "" | "." | "..") {
                return Err(Failure::new(format!("the server named an entry {:?}", entry.name)));
            }
            let to = to.join(&entry.name);
            match entry.kind.as_str() {
                "directory" => pending.push((entry.path, to)),
                "file" => download(client, volume, &entry.path, &to).await?,
                kind => eprintln!("{}: {kind}, not copied", entry.path),
            }
        }
    }
    Ok(())
}
