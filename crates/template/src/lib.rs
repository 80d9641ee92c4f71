//! Templates: recipes that turn Debian packages into a layer (`recipe`, `bootstrap`), and the steps of a build on top of one
//! (`steps`). What runs builds is in `control`; this crate knows what they say and not who carries it out.
//! The `base` recipe is compiled in, so a lone binary can build it. CRIU, QEMU and the guest's kernel are brought by the same means.
#![forbid(unsafe_code)]

mod bootstrap;
mod criu;
mod dockerfile;
mod microvm;
mod mmdebstrap;
mod packages;
mod recipe;
pub mod steps;

use std::io;
use std::path::{Path, PathBuf};

pub use bootstrap::{Built, build};
pub use criu::install_criu;
pub use dockerfile::{Dockerfile, DockerfileError, Planned};
pub use microvm::install_microvm;
pub use mmdebstrap::Progress;
pub use recipe::{Recipe, RecipeConfig, RecipeResources};

/// What can go wrong with a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The recipe says something that cannot be.
    #[error("the recipe is not valid: {0}")]
    Recipe(#[from] toml::de::Error),
    /// A program that builds need is not installed.
    #[error("{program} is not installed; install it with: apt-get install {package}")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Building failed; the last lines of the builder's own words are included.
    #[error("building {name} failed: {output}")]
    Build {
        /// The template.
        name: String,
        /// What the builder printed last.
        output: String,
    },
    /// This machine cannot use it.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer store refused.
    #[error(transparent)]
    Layer(#[from] layers::LayerError),
}

impl TemplateError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
