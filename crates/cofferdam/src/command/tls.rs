//! `cofferdam tls`: the authority of `serve --tls self-signed`, and how clients on this machine are told to trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::paths::{self, DataDir};
use crate::show;
use crate::tls::OwnAuthority;

/// Where distributions look for authorities that the administrator adds, the program that reads them, and the bundle that it makes.
const SYSTEM_STORES: [(&str, &str, &str); 4] = [
    ("/usr/local/share/ca-certificates", "update-ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust", "/etc/pki/tls/certs/ca-bundle.crt"),
    ("/etc/ca-certificates/trust-source/anchors", "update-ca-trust", "/etc/ssl/certs/ca-certificates.crt"),
    ("/etc/pki/trust/anchors", "update-ca-certificates", "/etc/ssl/ca-bundle.pem"),
];

/// Commands about the server's own certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum TlsCommand {
    /// Has programs on this machine trust the authority, and prints what else clients need.
    Trust(TrustArguments),
    /// Prints the authority's certificate, for other machines.
    Show(AuthorityArguments),
    /// Replaces the authority by which connections of sandboxes to hosts with header rules are intercepted. The server uses the new one
    /// from its next start on; sandboxes then trust both, and programs that run already the one that they began with.
    RotateEgressCa {
        #[command(flatten)]
        data: DataDir,
    },
}

/// Which authority is meant.
#[derive(Debug, Args)]
pub(crate) struct AuthorityArguments {
    #[command(flatten)]
    data: DataDir,
    /// Domain whose authority is meant. Its authority is made if there is none. [default: the only one]
    #[arg(long, env = "COFFERDAM_DOMAIN", value_parser = paths::domain)]
    domain: Option<String>,
}

/// Arguments of `tls trust`.
#[derive(Debug, Args)]
pub(crate) struct TrustArguments {
    #[command(flatten)]
    authority: AuthorityArguments,
    /// Remove it instead.
    #[arg(long)]
    remove: bool,
}

pub(crate) fn run(command: &TlsCommand) -> Result<ExitCode, Failure> {
    match command {
        TlsCommand::RotateEgressCa { data } => {
            let rotated = interception::rotate(&data.egress_ca());
            rotated.map_err(|error| Failure::new(format!("cannot replace the authority: {error}")))?;
            show::line("a new authority is used from the next start of the server on")?;
        }
        TlsCommand::Show(arguments) => {
            let authority = OwnAuthority::open(&arguments.data, &domain(arguments)?)?;
            show::line(authority.pem().trim_end())?;
        }
        TlsCommand::Trust(arguments) => {
            let domain = domain(&arguments.authority)?;
            if arguments.remove {
                let (file, _) = place(&domain)?;
                fs::remove_file(&file)
                    .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
                update_store()?;
                show::line(&format!("removed {}", file.display()))?;
            } else {
                let authority = OwnAuthority::open(&arguments.authority.data, &domain)?;
                for line in trust(&authority, &domain)? {
                    show::line(&line)?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Adds an authority to the system's store. Returns lines that say so, and what programs with stores of their own need.
///
/// # Errors
/// This system has no store that we know, or it cannot be changed.
pub(crate) fn trust(authority: &OwnAuthority, domain: &str) -> Result<Vec<String>, Failure> {
    let (file, bundle) = place(domain)?;
    fs_atomic::write(&file, authority.pem(), fs_atomic::Options::DEFAULT)
        .map_err(|error| Failure::new(format!("{}: {error}; run this as root", file.display())))?;
    update_store()?;
    let file = file.display();
    Ok(vec![
        format!("programs that use the system's authorities trust {domain} now: curl, git, Go, Rust, Python"),
        "programs with authorities of their own need:".to_owned(),
        format!("export NODE_EXTRA_CA_CERTS={file}   # Node.js"),
        format!("export SSL_CERT_FILE={bundle} REQUESTS_CA_BUNDLE={bundle}   # Python's httpx and requests"),
        format!("certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n cofferdam -i {file}   # Chrome and Chromium"),
        "Firefox: Settings, Certificates, Authorities, Import".to_owned(),
    ])
}

/// Returns the domain of the arguments, or that of the only authority.
fn domain(arguments: &AuthorityArguments) -> Result<String, Failure> {
    if let Some(domain) = &arguments.domain {
        return Ok(domain.clone());
    }
    let entries = fs::read_dir(arguments.data.tls()).into_iter().flatten().flatten();
    let mut domains: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    match (domains.pop(), domains.is_empty()) {
        (Some(domain), true) => Ok(domain),
        (None, _) => Err(Failure::new("there is no authority yet; name its domain with --domain")),
        _ => Err(Failure::new("there are several authorities; name the domain of one with --domain")),
    }
}

/// Returns the file for a domain's authority in the system's store, and the store's bundle.
fn place(domain: &str) -> Result<(PathBuf, &'static str), Failure> {
    let store = SYSTEM_STORES.iter().find(|(dir, _, _)| Path::new(dir).is_dir());
    let (dir, _, bundle) = store.ok_or_else(|| {
        Failure::new("this system's store of authorities is not known; install the package ca-certificates, or add the output of \
                      `cofferdam tls show` to it")
    })?;
    Ok((Path::new(dir).join(format!("cofferdam-{domain}.crt")), *bundle))
}

fn update_store() -> Result<(), Failure> {
    let store = SYSTEM_STORES.iter().find(|(dir, _, _)| Path::new(dir).is_dir());
    let Some((_, program, _)) = store else { return Ok(()) };
    let output =
        Command::new(program).output().map_err(|error| Failure::new(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
