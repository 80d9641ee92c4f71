//! Settings of `--acme`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use acme::{AcmeConfig, NameServer, Publisher, TsigKey};
use clap::Args;

use crate::failure::Failure;

/// Settings of certificates by ACME.
#[derive(Debug, Args)]
pub(super) struct AcmeArguments {
    /// Obtain the certificate from an authority that speaks ACME, and renew it. The domain is proven by DNS, with `--acme-dns-server` or
    /// `--acme-hook`. The address is for the authority, whose terms of service are agreed to.
    #[arg(long, env = "COFFERDAM_ACME", value_name = "MAIL", conflicts_with_all = ["tls_cert", "tls"])]
    acme: Option<String>,
    /// URL of the authority's directory.
    #[arg(
        long,
        env = "COFFERDAM_ACME_DIRECTORY",
        value_name = "URL",
        default_value = "https://acme-v02.api.letsencrypt.org/directory"
    )]
    acme_directory: String,
    /// PEM file of the authority that the directory's own certificate is of. [default: those that the system trusts]
    #[arg(long, value_name = "FILE", requires = "acme")]
    acme_ca: Option<PathBuf>,
    /// Name server of the domain that takes updates (RFC 2136) of the record `_acme-challenge.<domain>`.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "acme", conflicts_with = "acme_hook")]
    acme_dns_server: Option<SocketAddr>,
    /// File with the key that updates are signed with (TSIG), as for `nsupdate -y`: `hmac-sha256:<name>:<base64>`.
    #[arg(long, value_name = "FILE", requires = "acme_dns_server")]
    acme_dns_key: Option<PathBuf>,
    /// Program that publishes records: `<program> publish|withdraw <name> <value>`.
    #[arg(long, value_name = "FILE", requires = "acme")]
    acme_hook: Option<PathBuf>,
    /// How long it takes until a published record is seen everywhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    acme_wait: u64,
}

impl AcmeArguments {
    /// Returns the configuration, if ACME is wanted.
    ///
    /// # Errors
    /// Nothing publishes records, or the key cannot be used.
    pub(super) fn config(&self) -> Result<Option<AcmeConfig>, Failure> {
        let Some(mail) = self.acme.clone() else { return Ok(None) };
        let publisher = match (self.acme_dns_server, &self.acme_hook) {
            (Some(address), _) => Publisher::NameServer(NameServer { address, key: self.key()? }),
            (None, Some(program)) => Publisher::Hook(program.clone()),
            (None, None) => {
                return Err(Failure::new(
                    "--acme proves the domain by a DNS record: name its name server with --acme-dns-server, or a program with --acme-hook",
                ));
            }
        };
        Ok(Some(AcmeConfig {
            mail,
            directory: self.acme_directory.clone(),
            directory_ca: self.acme_ca.clone(),
            publisher,
            propagation: Duration::from_secs(self.acme_wait),
        }))
    }

    fn key(&self) -> Result<Option<TsigKey>, Failure> {
        let Some(path) = &self.acme_dns_key else { return Ok(None) };
        let failed = |error: String| Failure::new(format!("--acme-dns-key {}: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        text.parse().map(Some).map_err(failed)
    }
}
