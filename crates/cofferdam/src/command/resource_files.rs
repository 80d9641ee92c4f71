//! `cofferdam resource-files`: the process that serves the files in which containers see their own size. Its standard input is the
//! connection. It outlives the server, and ends when no sandbox has its files mounted any more.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use engine_host::Hierarchies;
use engine_host::cgroup::Controller;

use crate::failure::Failure;

/// Score by which the kernel chooses processes to kill when the host's memory is used up: this one serves every sandbox.
const OOM_SCORE: &str = "-900";

/// Arguments of `cofferdam resource-files`.
#[derive(Debug, Args)]
pub(crate) struct ResourceFilesArguments {
    /// This server's directory in the version 2 hierarchy of control groups.
    #[arg(long, value_name = "DIR")]
    unified: PathBuf,
    /// A version 1 controller and this server's directory in its hierarchy.
    #[arg(long = "controller", value_name = "NAME=DIR", value_parser = controller)]
    controllers: Vec<(Controller, PathBuf)>,
}

fn controller(text: &str) -> Result<(Controller, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("expected NAME=DIR")?;
    let known = Controller::ALL.into_iter().find(|controller| controller.name() == name);
    Ok((known.ok_or_else(|| format!("unknown controller {name}"))?, dir.into()))
}

/// Serves until nothing is mounted any more.
///
/// # Errors
/// Standard input is not such a connection.
pub(crate) fn run(arguments: ResourceFilesArguments) -> Result<ExitCode, Failure> {
    // A session of its own: the end of the server's terminal is not its end.
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let hierarchies = Hierarchies { unified: arguments.unified, v1: arguments.controllers };
    resource_files::serve(std::io::stdin(), &hierarchies)
        .map_err(|error| Failure::new(format!("failed to serve: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
