//! `cofferdam doctor`: checks whether this host can run sandboxes, and names a remedy for each fault.
//! `checks` reads the host's settings, `microvm` boots a guest, `probe` starts a sandbox, `domain` is a client of the server's domain.
//! The exit code is 1 if a check fails; a warning is a fault that only limits some feature.

mod checks;
mod domain;
mod microvm;
mod probe;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use self::domain::Domain;
use crate::access::block_on;
use crate::background;
use crate::failure::Failure;
use crate::paths::{CriuDirectory, DataDir, MicrovmDirectory};
use crate::show;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    data: DataDir,
    /// Address that the server listens on.
    #[arg(long, env = "COFFERDAM_LISTEN", default_value = "127.0.0.1:3000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Directory of template layers. [default: layers in the data directory]
    #[arg(long, env = "COFFERDAM_LAYERS_DIR", value_name = "DIR")]
    layers_dir: Option<PathBuf>,
    /// Directory for locks, sockets and mounts, which a reboot may remove.
    #[arg(long, default_value = "/run/cofferdam", value_name = "DIR")]
    run_dir: PathBuf,
    /// The envd binary. [default: beside this program]
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    #[command(flatten)]
    criu: CriuDirectory,
    /// The guest-init binary, the first process of microVMs' guests. [default: beside this program]
    #[arg(long, env = "COFFERDAM_GUEST_INIT", value_name = "FILE")]
    guest_init: Option<PathBuf>,
    #[command(flatten)]
    microvm: MicrovmDirectory,
    /// Domain to check as clients see it, with a port if that is not 443. [default: that of the running server, if it has TLS]
    #[arg(long, env = "COFFERDAM_DOMAIN", value_name = "NAME[:PORT]", value_parser = Domain::parse)]
    domain: Option<Domain>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The result of a check.
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

/// A check with its result and, unless it is ok, a remedy.
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

/// Checks the domain that the arguments name, or that of the running server.
async fn check_domain(arguments: &DoctorArguments) -> Vec<Finding> {
    let server = background::running(&arguments.data).await;
    let of_server = || Domain::parse(server.as_ref()?.domain.as_deref()?).ok();
    let Some(domain) = arguments.domain.clone().or_else(of_server) else { return Vec::new() };
    domain::check(&domain, &arguments.data, server.as_ref()).await
}

pub(crate) fn run(arguments: &DoctorArguments) -> Result<ExitCode, Failure> {
    let mut findings = checks::host(arguments);
    findings.push(block_on(async { Ok(microvm::check(arguments).await) })?);
    findings.push(block_on(async { Ok(checks::server(arguments).await) })?);
    findings.push(block_on(async { Ok(probe::run(arguments).await) })?);
    findings.extend(block_on(async { Ok(check_domain(arguments).await) })?);
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
