//! The command line.
//! `serve` is the template's start command; `prepare` runs once, while the template is built.
//! Everything has a default that is right inside the template.

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
    /// Serves until it is ended.
    Serve(Serve),
    /// Writes the drivers, and compiles what can be compiled ahead.
    Prepare(Prepare),
}

/// Where things are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    /// Address to listen on; it is opened once Python and JavaScript are ready.
    #[arg(long, default_value = "0.0.0.0:49999")]
    pub(crate) listen: SocketAddr,
    /// Directory with the prepared drivers and their npm modules.
    #[arg(long, default_value = files::HOME)]
    pub(crate) home: PathBuf,
    /// Python that has ipykernel.
    #[arg(long, default_value = "python3")]
    pub(crate) python: PathBuf,
    /// envd: who may run code, and with which environment.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], envd_api::PORT)))]
    pub(crate) envd: SocketAddr,
    /// Where contexts start that name no directory.
    #[arg(long, default_value = "/home/user")]
    pub(crate) cwd: PathBuf,
    /// Lets Python's zygote go after each fork: a memory image is a third smaller, a new context takes a second longer.
    #[arg(long)]
    pub(crate) drop_zygote: bool,
    /// File that names the sandbox; a copy of a sandbox finds another name there.
    #[arg(long, default_value = "/run/e2b/.E2B_SANDBOX_ID")]
    pub(crate) identity: PathBuf,
    /// Directory that says which kernels run, for the interpreter after one that was killed.
    #[arg(long, default_value = "/run/interpreter")]
    pub(crate) running: PathBuf,
    /// Modules that every Python context finds imported already.
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
