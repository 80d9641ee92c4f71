//! The command line.
//! `serve` is the template's start command; `prepare` runs once, while the template is built.
//! All options have defaults that fit the template.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The code interpreter of a sandbox.
#[derive(Debug, clap::Parser)]
#[command(name = "interpreter", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Serves until it is terminated.
    Serve(Serve),
    /// Writes the drivers and compiles the Java driver.
    Prepare(Prepare),
}

/// Options of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    /// Address to listen on, once Python and JavaScript are ready.
    #[arg(long, default_value = "0.0.0.0:49999")]
    pub(crate) listen: SocketAddr,
    /// Directory with the prepared drivers and their npm modules.
    #[arg(long, default_value = files::HOME)]
    pub(crate) home: PathBuf,
    /// Python interpreter with ipykernel.
    #[arg(long, default_value = "python3")]
    pub(crate) python: PathBuf,
    /// Address of envd, which checks access tokens and knows the sandbox's environment.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], envd_api::PORT)))]
    pub(crate) envd: SocketAddr,
    /// Working directory of contexts that name none.
    #[arg(long, default_value = "/home/user")]
    pub(crate) cwd: PathBuf,
    /// End Python's zygote after each fork: memory snapshots are a third smaller, new contexts take a second longer.
    #[arg(long)]
    pub(crate) drop_zygote: bool,
    /// File with the sandbox's id, by which a copy of a sandbox is detected.
    #[arg(long, default_value = "/run/e2b/.E2B_SANDBOX_ID")]
    pub(crate) identity: PathBuf,
    /// Directory that records the running kernels, so that the interpreter after a killed one can end them.
    #[arg(long, default_value = "/run/interpreter")]
    pub(crate) running: PathBuf,
    /// Modules that are imported before Python contexts are forked.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "numpy,pandas,matplotlib,matplotlib.pyplot,PIL.Image,e2b_charts,orjson"
    )]
    pub(crate) preload: Vec<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Prepare {
    /// Directory to write to.
    #[arg(long, default_value = files::HOME)]
    pub(crate) home: PathBuf,
}

use crate::files;
