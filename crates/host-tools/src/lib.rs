//! Installs the programs that the server runs besides itself, from Debian packages into directories of their own: CRIU
//! ([`install_criu`]), QEMU and the kernel of its guests ([`install_microvm`]). Also holds [`mmdebstrap`], which unpacks the packages,
//! for templates that are bootstrapped in the same way.
#![forbid(unsafe_code)]

mod criu;
mod microvm;
pub mod mmdebstrap;
mod packages;

use std::io;
use std::path::{Path, PathBuf};

pub use criu::install_criu;
pub use microvm::install_microvm;
pub use mmdebstrap::Progress;

/// Errors of unpacking Debian packages and of installing programs from them.
#[derive(Debug, thiserror::Error)]
pub enum HostToolError {
    /// A program that unpacks packages is not installed.
    #[error("{program} is not installed; install it with: apt-get install {package}")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// mmdebstrap failed.
    #[error("building {name} failed: {output}")]
    Mmdebstrap {
        /// What was to be built of the packages.
        name: String,
        /// The last lines of mmdebstrap's output.
        output: String,
    },
    /// The program does not exist for this host.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HostToolError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
