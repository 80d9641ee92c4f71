//! Templates: recipes, which turn Debian packages into a layer ([`Recipe`], [`build()`]), the steps of a build on top of a layer
//! ([`steps`]), and Dockerfiles as lists of steps ([`Dockerfile`]). This crate describes steps; `control` runs them.
//! The `base` recipe is compiled in, so the server's binary alone can build it.
#![forbid(unsafe_code)]

mod bootstrap;
mod dockerfile;
mod recipe;
pub mod steps;

use std::io;
use std::path::PathBuf;

pub use bootstrap::{Built, build};
pub use dockerfile::{Dockerfile, DockerfileError, Planned, Stage, StageBase};
pub use host_tools::{HostToolError, Progress};
pub use recipe::{Recipe, RecipeConfig, RecipeResources};

/// Errors of reading and building recipes.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// `recipe.toml` is not valid.
    #[error("the recipe is not valid: {0}")]
    Recipe(#[from] toml::de::Error),
    /// Debian packages could not be unpacked.
    #[error(transparent)]
    Bootstrap(#[from] HostToolError),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer store failed.
    #[error(transparent)]
    Layer(#[from] layers::LayerError),
}
