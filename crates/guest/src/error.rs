//! What can go wrong while a guest's files are made.
//! Messages are for the operator.

use std::io;
use std::path::{Path, PathBuf};

use layers::LayerError;

/// Why a guest's files could not be made, or its layer not be taken.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A file or directory could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A template that cannot be used.
    #[error("the template's layer {} is not there; build the template again", path.display())]
    NoLayer {
        /// Where it should be.
        path: PathBuf,
    },
    /// The layers do not go together.
    #[error("the template's layers cannot be mounted together: {0}; build the template again")]
    Merge(io::Error),
    /// A program that makes file systems is not installed.
    #[error("{0} is not installed; install it with: apt-get install e2fsprogs")]
    NoProgram(&'static str),
    /// It failed.
    #[error("{name} could not make {}: {output}", path.display())]
    Program {
        /// Which one.
        name: &'static str,
        /// What it was to make.
        path: PathBuf,
        /// Its own words.
        output: String,
    },
    /// What came out of a guest is no layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl GuestError {
    pub(crate) fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }
}
