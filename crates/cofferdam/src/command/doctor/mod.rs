//! `cofferdam doctor`: whether this machine can run sandboxes, check by check, with the remedy beside each fault.
//! `checks` looks at the host, `probe` really starts a sandbox: only that proves anything.
//! Fails if any check fails; warnings are things that work with a limit.

mod checks;
mod microvm;
mod probe;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::access::block_on;
use crate::failure::Failure;
use crate::paths::{CriuDirectory, DataDir, MicrovmDirectory};
use crate::show;

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    data: DataDir,
    /// Where the server listens or will.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Directory of template layers, if not in the data directory.
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// Directory for locks and mounts, as of the server.
    #[arg(long, default_value = "/run/cofferdam", value_name = "DIR")]
    run_dir: PathBuf,
    /// The envd binary, if not beside this one.
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    #[command(flatten)]
    criu: CriuDirectory,
    /// The first program of microVMs' guests, if not beside this one.
    #[arg(long, env = "COFFERDAM_GUEST_INIT", value_name = "FILE")]
    guest_init: Option<PathBuf>,
    #[command(flatten)]
    microvm: MicrovmDirectory,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warning,
    Failure,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        })
    }
}

/// One check's outcome.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn failure(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Failure, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

pub(crate) fn run(arguments: &DoctorArguments) -> Result<ExitCode, Failure> {
    let mut findings = checks::host(arguments);
    findings.push(block_on(async { Ok(microvm::check(arguments).await) })?);
    findings.push(block_on(async { Ok(checks::server(arguments).await) })?);
    findings.push(block_on(async { Ok(probe::run(arguments).await) })?);
    if arguments.json {
        show::json(&findings)?;
    } else {
        for finding in &findings {
            show::line(&format!("{:8} {:18} {}", finding.status, finding.check, finding.detail))?;
            if let Some(remedy) = &finding.remedy {
                show::line(&format!("{:27} → {remedy}", ""))?;
            }
        }
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
