//! The code interpreter in a sandbox: the server of `runCode` of the official SDKs, on port 49999.
//! Python and R are Jupyter kernels; JavaScript, TypeScript, Java and bash run in small drivers that are part of the binary.
//! It does not trust kernels, but does not protect itself from root in the sandbox: the sandbox is the security boundary.
#![forbid(unsafe_code)]

mod args;
mod contexts;
mod copy_detector;
mod envd;
mod error;
mod event;
mod files;
mod http;
mod kernel;
mod kernel_env;
mod kernel_records;
mod language;
mod reaper;
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

/// Makes a runtime with one thread: the heavy work is done by the kernels.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}
