//! `cofferdam template export` and `import`: write a template to an archive, and create one from an archive or image file.
//! An export is written to a temporary name and renamed when it is complete.
//! An import is a build, and is followed to its end.

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

/// Arguments of `template export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    data: DataDir,
    /// Name of the template, optionally with a tag.
    name: String,
    /// File to write. [default: the template's name with `.tar`]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Arguments of `template import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    data: DataDir,
    /// The archive or image file.
    file: PathBuf,
    /// Name of the template, optionally with a tag.
    #[arg(long)]
    name: String,
    /// Number of processors of its sandboxes, if the file is an image.
    #[arg(long, value_name = "COUNT")]
    cpu_count: Option<u32>,
    /// Memory of its sandboxes, MiB, if the file is an image.
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
