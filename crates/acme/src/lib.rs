//! Certificates for a domain and its subdomains from an authority that speaks ACME (RFC 8555). A wildcard is proven by DNS alone: a TXT record
//! below the domain, which a name server takes as an update (RFC 2136) or a program of the operator's publishes.

#![forbid(unsafe_code)]

mod hook;
mod update;

use std::path::{Path, PathBuf};
use std::time::Duration;

use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};

pub use update::{NameServer, TsigKey};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The authority refused something, or cannot be reached.
    #[error("ACME: {0}")]
    Protocol(#[from] instant_acme::Error),
    /// The authority did not accept the proof.
    #[error("ACME: the authority did not find the TXT record {0}, or refused the order: {1}")]
    Refused(String, String),
    /// The stored account is damaged.
    #[error("ACME: the stored account is damaged: {0}")]
    Account(#[from] serde_json::Error),
    /// The record could not be published.
    #[error("the TXT record {name} could not be changed: {reason}")]
    Dns {
        /// Name of the record.
        name: String,
        /// What failed.
        reason: String,
    },
}

/// Where the record that proves the domain is published.
#[derive(Debug, Clone)]
pub enum Publisher {
    /// A name server that takes updates.
    NameServer(NameServer),
    /// A program: `<program> publish|withdraw <name> <value>`.
    Hook(PathBuf),
}

/// What a certificate is asked for with.
#[derive(Debug, Clone)]
pub struct AcmeConfig {
    /// Mail address of the account.
    pub mail: String,
    /// URL of the authority's directory.
    pub directory: String,
    /// PEM file of the authority that has signed the directory's own certificate. Without it those of the system are trusted.
    pub directory_ca: Option<PathBuf>,
    /// Where the record is published.
    pub publisher: Publisher,
    /// How long it takes until the record is seen everywhere.
    pub propagation: Duration,
}

/// A certificate and its key, as PEM texts.
#[derive(Debug)]
pub struct Obtained {
    /// The certificate, followed by intermediate ones.
    pub chain: String,
    /// Its key.
    pub key: String,
}

/// An account with an authority.
pub struct AcmeAccount {
    account: Account,
    config: AcmeConfig,
}

impl AcmeAccount {
    /// Opens the account of stored credentials, or a new one. The second value is what to store then: whoever has it can get certificates
    /// for what the account has proven.
    ///
    /// # Errors
    /// The authority cannot be reached or refuses the account, or the credentials are damaged.
    pub async fn open(config: AcmeConfig, stored: Option<&str>) -> Result<(Self, Option<String>), AcmeError> {
        let builder = builder(config.directory_ca.as_deref())?;
        if let Some(stored) = stored {
            let credentials: AccountCredentials = serde_json::from_str(stored)?;
            let account = builder.from_credentials(credentials).await?;
            return Ok((Self { account, config }, None));
        }
        let contact = format!("mailto:{}", config.mail);
        let new =
            NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, config.directory.clone(), None).await?;
        Ok((Self { account, config }, Some(serde_json::to_string(&credentials)?)))
    }

    /// Obtains a certificate for a domain and all names one label below it.
    ///
    /// # Errors
    /// The record cannot be published, or the authority refuses the order.
    pub async fn obtain(&self, domain: &str) -> Result<Obtained, AcmeError> {
        let identifiers = [domain.to_owned(), format!("*.{domain}")].map(Identifier::Dns);
        let mut order = self.account.new_order(&NewOrder::new(&identifiers)).await?;
        let values = proofs(&mut order).await?;
        let record = format!("_acme-challenge.{domain}");
        if !values.is_empty() {
            self.config.publisher.publish(&record, &values).await?;
            tokio::time::sleep(self.config.propagation).await;
        }
        let obtained = finish(&mut order, &record).await;
        if !values.is_empty()
            && let Err(error) = self.config.publisher.withdraw(&record, &values).await
        {
            tracing::warn!(%error, "a record of ACME is left over");
        }
        obtained
    }
}

fn builder(ca: Option<&Path>) -> Result<AccountBuilder, AcmeError> {
    Ok(match ca {
        Some(ca) => Account::builder_with_root(ca)?,
        None => Account::builder()?,
    })
}

/// Returns the values that the record must have, one for each name that is not proven yet.
async fn proofs(order: &mut Order) -> Result<Vec<String>, AcmeError> {
    let mut values = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let challenge = authorization
            .challenge(ChallengeType::Dns01)
            .ok_or(instant_acme::Error::Str("the authority offers no proof by DNS"))?;
        values.push(challenge.key_authorization().dns_value());
    }
    Ok(values)
}

/// Has the authority look at the record, and fetches the certificate.
async fn finish(order: &mut Order, record: &str) -> Result<Obtained, AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Valid
            && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
        {
            challenge.set_ready().await?;
        }
    }
    let refused = |reason: String| AcmeError::Refused(record.to_owned(), reason);
    let status =
        order.poll_ready(&RetryPolicy::default()).await.map_err(|error| refused(error.to_string()))?;
    if status != OrderStatus::Ready {
        let reason = order.state().error.as_ref().map_or_else(|| format!("{status:?}"), ToString::to_string);
        return Err(refused(reason));
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&RetryPolicy::default()).await?;
    Ok(Obtained { chain, key })
}

impl Publisher {
    async fn publish(&self, record: &str, values: &[String]) -> Result<(), AcmeError> {
        match self {
            Self::NameServer(server) => server.set(record, values).await,
            Self::Hook(program) => hook::run(program, "publish", record, values).await,
        }
        .map_err(|reason| AcmeError::Dns { name: record.to_owned(), reason })
    }

    async fn withdraw(&self, record: &str, values: &[String]) -> Result<(), AcmeError> {
        match self {
            Self::NameServer(server) => server.set(record, &[]).await,
            Self::Hook(program) => hook::run(program, "withdraw", record, values).await,
        }
        .map_err(|reason| AcmeError::Dns { name: record.to_owned(), reason })
    }
}
