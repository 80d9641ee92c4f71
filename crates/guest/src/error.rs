//! Errors of creating the files of a guest. The texts are for the operator.

use std::io;
use std::path::{Path, PathBuf};

use layers::LayerError;

/// Why a file of a guest could not be created, or its layer not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A file or directory could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A layer of the template does not exist.
    #[error("the template's layer {} is missing; build the template again", path.display())]
    NoLayer {
        /// The expected path.
        path: PathBuf,
    },
    /// overlayfs refuses to stack the layers.
    #[error("the template's layers cannot be mounted together: {0}; build the template again")]
    Merge(io::Error),
    /// The template's directories are nested too deeply for a disk image.
    #[error(
        "the template has a path of {0} bytes, and a microVM's disk image has room for 2,000; remove the directories that are nested so deeply"
    )]
    TooDeep(usize),
    /// A program of e2fsprogs is not installed.
    #[error("{0} is not installed; install it with: apt-get install e2fsprogs")]
    NoProgram(&'static str),
    /// A program of e2fsprogs failed.
    #[error("{name} failed to create {}: {output}", path.display())]
    Program {
        /// The program.
        name: &'static str,
        /// The file to create.
        path: PathBuf,
        /// What it wrote to standard error.
        output: String,
    },
    /// The stream from a guest is not a layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl GuestError {
    /// Returns a function that wraps an error of using `path`.
    pub(crate) fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source: source.into() }
    }
}
