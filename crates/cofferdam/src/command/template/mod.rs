//! `cofferdam template`: builds templates from a Dockerfile, lists, shows, publishes, deletes, exports and imports them.
//! All commands but `build-base` call the server's API.

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

/// Commands for templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Builds a template from a directory with a Dockerfile and, optionally, a template.toml.
    Build(build::BuildArguments),
    /// Lists templates.
    List {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints a template with its builds as JSON.
    Show(TemplateArguments),
    /// Deletes a template or snapshot.
    Delete(TemplateArguments),
    /// Lets other teams use a template, or revokes that permission.
    Publish {
        #[command(flatten)]
        template: TemplateArguments,
        /// Make the template private again.
        #[arg(long)]
        private: bool,
    },
    /// Writes a template with all its layers to an archive.
    Export(archive::ExportArguments),
    /// Creates a template from an archive: an exported template, the output of `docker save`, or an OCI layout.
    Import(archive::ImportArguments),
    /// Builds the layer of template `base` from Debian packages, unless it is there. Needs no server.
    BuildBase {
        #[command(flatten)]
        data: DataDir,
        /// Directory of template layers. [default: layers in the data directory]
        #[arg(long, value_name = "DIR")]
        layers_dir: Option<PathBuf>,
    },
}

/// A template.
#[derive(Debug, Args)]
pub(crate) struct TemplateArguments {
    #[command(flatten)]
    data: DataDir,
    /// Name or id of the template.
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
    show::table(&["NAMES", "ID", "STATUS", "SIZE", "", "CREATED"], &rows, "no templates")
}

async fn delete(template: &TemplateArguments) -> Result<(), Failure> {
    Ok(team_client(&template.data)?.delete_template(&template.name).await?)
}

async fn publish(template: &TemplateArguments, public: bool) -> Result<(), Failure> {
    Ok(team_client(&template.data)?.publish_template(&template.name, public).await?)
}

async fn describe(template: &TemplateArguments) -> Result<(), Failure> {
    show::json(&team_client(&template.data)?.template(&template.name).await?)
}
