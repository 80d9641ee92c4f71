//! `cofferdam resource-files`: the process that serves the files in which containers see their own size. Its standard input is the
//! connection. It outlives the server, and ends when no sandbox has its files mounted any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use engine_host::Hierarchies;
use engine_host::cgroup::Controller;
use engine_host::uids::SERVING_ID;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

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

/// Becomes a user without rights: sandboxes choose the names and offsets in the requests that this process reads. Stays root where such a user
/// cannot read control groups or time namespaces, as with a `/proc` that hides processes.
fn drop_privileges(unified: &Path) -> io::Result<()> {
    let (root, user) = (Uid::ROOT, Uid::from_raw(SERVING_ID));
    let group = Gid::from_raw(SERVING_ID);
    set_thread_res_uid(root, user, root)?;
    let can_read = fs::read_dir(unified).is_ok() && fs::read_to_string("/proc/1/timens_offsets").is_ok();
    set_thread_res_uid(root, root, root)?;
    if !can_read {
        return Ok(());
    }
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Serves until nothing is mounted any more.
///
/// # Errors
/// Standard input is not such a connection.
pub(crate) fn run(arguments: ResourceFilesArguments) -> Result<ExitCode, Failure> {
    // A session of its own: the end of the server's terminal is not its end.
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    drop_privileges(&arguments.unified)
        .map_err(|error| Failure::new(format!("failed to give up the rights of root: {error}")))?;
    let hierarchies = Hierarchies { unified: arguments.unified, v1: arguments.controllers };
    resource_files::serve(std::io::stdin(), &hierarchies)
        .map_err(|error| Failure::new(format!("failed to serve: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
