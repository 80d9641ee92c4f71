//! The code interpreter inside a sandbox: what `runCode` of the official SDKs talks to, on port 49999.
//! Python and R are Jupyter kernels; JavaScript, TypeScript, Java and bash have small drivers of ours, compiled in.
//! It trusts nothing that a kernel says, but protects nobody from the sandbox's own root: the sandbox is the wall.
#![forbid(unsafe_code)]

mod args;
mod contexts;
mod envd;
mod error;
mod event;
mod files;
mod http;
mod identity;
mod kernel;
mod language;
mod prepare;
mod reaper;
mod remains;
mod run;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};
use crate::error::Error;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("INTERPRETER_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let done = match Args::parse().command {
        Command::Serve(serve) => runtime().and_then(|runtime| runtime.block_on(http::serve(serve))),
        Command::Prepare(prepare) => files::prepare(&prepare.home),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: what is heavy runs in the kernels.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}
