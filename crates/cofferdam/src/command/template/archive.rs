//! `cofferdam template export` and `import`: a template as one file, from server to server; and container images from files.
//! An export is written beside its name and renamed when it is whole.
//! An import is a build like any other, followed to its end.

use std::path::PathBuf;

use clap::Args;
use cofferdam_client::BuildOptions;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::follow::follow;
use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// A template to a file.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    data: DataDir,
    /// Its name, with a tag if wanted.
    name: String,
    /// The file; by default the template's name with `.tar`.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A file to a template.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    data: DataDir,
    /// The archive.
    file: PathBuf,
    /// Name of the template, with a tag if wanted.
    #[arg(long)]
    name: String,
    /// Processors of its sandboxes, where the archive is an image.
    #[arg(long, value_name = "COUNT")]
    cpu_count: Option<u32>,
    /// Their memory, MiB, where the archive is an image.
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u32>,
    /// Show every line of the build's log.
    #[arg(long, short)]
    verbose: bool,
}

pub(super) async fn export(arguments: &ExportArguments) -> Result<(), Failure> {
    let client = team_client(&arguments.data)?;
    let path = arguments
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{}.tar", arguments.name.replace(['/', ':'], "-"))));
    let mut pieces = client.export_template(&arguments.name).await?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(".".as_ref());
    let new = tempfile::Builder::new().prefix(".export-").tempfile_in(dir)?;
    let mut file = tokio::fs::File::from_std(new.reopen()?);
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece?).await?;
    }
    file.sync_all().await?;
    new.persist(&path).map_err(|error| error.error)?;
    show::line(&path.display().to_string())
}

pub(super) async fn import(arguments: &ImportArguments) -> Result<(), Failure> {
    let client = team_client(&arguments.data)?;
    let file = tokio::fs::File::open(&arguments.file).await;
    let file = file.map_err(|error| Failure::new(format!("{}: {error}", arguments.file.display())))?;
    let options = BuildOptions {
        name: arguments.name.clone(),
        cpu_count: arguments.cpu_count,
        memory_mib: arguments.memory_mb,
        ..BuildOptions::default()
    };
    let build = client.request_build(&options).await?;
    client.import_archive(&build, ReaderStream::with_capacity(file, 256 << 10)).await?;
    follow(&client, &arguments.name, &build, arguments.verbose).await?;
    show::line(&build.template_id)
}
