//! `cofferdam template`: layers built on this machine without a server.
//! The server finds what is built here when it starts.
//! Building with a Dockerfile or the SDKs is the server's work, not this command's.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;
use layers::LayerStore;
use template::{Built, Recipe};

use crate::failure::Failure;
use crate::paths::DataDir;
use crate::progress::BuildBar;

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Builds the `base` template's layer from Debian packages, unless it is there.
    BuildBase {
        #[command(flatten)]
        data: DataDir,
        /// Where layers are kept, if not in the data folder.
        #[arg(long, value_name = "DIR")]
        layers_dir: Option<PathBuf>,
    },
}

pub(crate) fn run(command: TemplateCommand) -> Result<ExitCode, Failure> {
    match command {
        TemplateCommand::BuildBase { data, layers_dir } => {
            let store = LayerStore::open(&layers_dir.unwrap_or_else(|| data.layers()))?;
            let built = build_base(&store)?;
            println!("{}", store.path(&built.layer).display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Builds the base layer with a progress bar.
pub(crate) fn build_base(store: &LayerStore) -> Result<Built, Failure> {
    let recipe = Recipe::base()?;
    let mut bar = BuildBar::new(recipe.name());
    let begun = Instant::now();
    let built = template::build(&recipe, store, &mut |progress| bar.show(&progress))?;
    bar.finish();
    if !built.cached {
        eprintln!("template {} built in {:.0} s", recipe.name(), begun.elapsed().as_secs_f64());
    }
    Ok(built)
}
