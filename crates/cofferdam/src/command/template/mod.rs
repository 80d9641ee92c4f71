//! `cofferdam template`: templates built from directories with a Dockerfile, listed, shown, published, deleted, and carried from
//! server to server as archives. Everything goes through the server, as with the official tools;
//! only `build-base` works without one.

mod archive;
mod base;
mod build;
mod context;
mod follow;
mod ignored;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(crate) use base::build_base;

use crate::access::{block_on, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Builds a template from a directory with a Dockerfile, and perhaps a template.toml.
    Build(build::BuildArguments),
    /// Lists templates.
    List {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows a template with its builds.
    Show(Named),
    /// Deletes a template or snapshot.
    Delete(Named),
    /// Lets other teams use a template, or no more.
    Publish {
        #[command(flatten)]
        template: Named,
        /// Make it private again.
        #[arg(long)]
        private: bool,
    },
    /// Writes a template into one archive with all its layers.
    Export(archive::ExportArguments),
    /// Makes a template of an archive: one that was exported, `docker save` or an OCI layout.
    Import(archive::ImportArguments),
    /// Builds the `base` template's layer from Debian packages, unless it is there.
    BuildBase {
        #[command(flatten)]
        data: DataDir,
        /// Where layers are kept, if not in the data directory.
        #[arg(long, value_name = "DIR")]
        layers_dir: Option<PathBuf>,
    },
}

/// One template.
#[derive(Debug, Args)]
pub(crate) struct Named {
    #[command(flatten)]
    data: DataDir,
    /// Its name or id.
    name: String,
}

pub(crate) fn run(command: TemplateCommand) -> Result<ExitCode, Failure> {
    match command {
        TemplateCommand::BuildBase { data, layers_dir } => base::run(&data, layers_dir)?,
        TemplateCommand::Build(arguments) => block_on(build::run(&arguments))?,
        TemplateCommand::List { data, json } => block_on(list(&data, json))?,
        TemplateCommand::Show(template) => block_on(describe(&template))?,
        TemplateCommand::Delete(template) => block_on(delete(&template))?,
        TemplateCommand::Publish { template, private } => block_on(publish(&template, !private))?,
        TemplateCommand::Export(arguments) => block_on(archive::export(&arguments))?,
        TemplateCommand::Import(arguments) => block_on(archive::import(&arguments))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(data: &DataDir, json: bool) -> Result<(), Failure> {
    let templates = team_client(data)?.templates().await?;
    if json {
        return show::json(&templates);
    }
    let rows: Vec<Vec<String>> = templates
        .into_iter()
        .map(|template| {
            vec![
                template.names.join(", "),
                template.id,
                template.build_status,
                format!("{} cpu, {} MiB", template.cpu_count, template.memory_mib),
                if template.public { "public" } else { "" }.to_owned(),
                show::from_now(template.created_at),
            ]
        })
        .collect();
    show::table(&["NAMES", "ID", "STATUS", "SIZE", "", "MADE"], &rows, "no templates")
}

async fn delete(template: &Named) -> Result<(), Failure> {
    Ok(team_client(&template.data)?.delete_template(&template.name).await?)
}

async fn publish(template: &Named, public: bool) -> Result<(), Failure> {
    Ok(team_client(&template.data)?.publish_template(&template.name, public).await?)
}

async fn describe(template: &Named) -> Result<(), Failure> {
    show::json(&team_client(&template.data)?.template(&template.name).await?)
}
