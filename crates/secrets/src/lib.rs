//! Secrets of teams: values that header rules refer to by name. They are encrypted in the database, and nothing returns them but
//! [`Secrets::value`], for the interceptor of sandboxes' requests.
#![forbid(unsafe_code)]

mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;

use egress_rules::{EgressProxy, secret_name};
use ids::{SecretId, TeamId};
use store::{Store, StoreError, StoredSecret, truncate_to_micros};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use keys::{KeyError, Keys};

/// Maximum number of secrets of a team.
const MAX_SECRETS: u32 = 1000;
/// Maximum length of a value, bytes.
const MAX_VALUE: usize = 64 << 10;
const MAX_METADATA: usize = 32;
const MAX_METADATA_KEY: usize = 128;
const MAX_METADATA_VALUE: usize = 1024;
const MAX_METADATA_TOTAL: usize = 8192;
/// Maximum number of secrets of a page.
const MAX_PAGE: u32 = 100;
/// Key of the metadata that lists the hosts which a secret may be sent to, with commas between them: names, or `*.` and a suffix.
pub const ALLOWED_HOSTS: &str = "cofferdam.allowed_hosts";

/// Metadata of a secret, by key.
pub type Metadata = BTreeMap<String, String>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A name, id, value or metadata is not valid.
    #[error("invalid name, value or metadata")]
    Invalid,
    /// The team has no such secret.
    #[error("secret not found")]
    NotFound,
    /// The name is taken, the team has as many as it may, or somebody else changed the secret at the same time.
    #[error("the secret cannot be changed in its present state")]
    Conflict,
    /// It may not be sent to the host that it was asked for.
    #[error("the secret may not be sent to this host")]
    NotForHost,
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
    /// The value cannot be encrypted or decrypted.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<StoreError> for SecretsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(_) => Self::Conflict,
            error => Self::Store(error),
        }
    }
}

/// What users see of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInfo {
    /// Its id.
    pub id: SecretId,
    /// Its name, in lower case.
    pub name: String,
    /// Counts its values, from 1 on.
    pub version: u64,
    /// Metadata of the user.
    pub metadata: Metadata,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When its value was last set.
    pub updated_at: OffsetDateTime,
}

impl From<StoredSecret> for SecretInfo {
    fn from(stored: StoredSecret) -> Self {
        let StoredSecret { id, name, version, metadata, created_at, updated_at, .. } = stored;
        Self { id, name, version, metadata, created_at, updated_at }
    }
}

/// The secrets of all teams.
pub struct Secrets {
    store: Arc<dyn Store>,
    keys: Keys,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// Opens the secrets. Those that are encrypted with an older one of the keys are encrypted with the newest.
    ///
    /// # Errors
    /// The database fails. A secret whose key is missing is logged and stays as it is.
    pub async fn open(store: Arc<dyn Store>, keys: Keys) -> Result<Self, StoreError> {
        let secrets = Self { store, keys };
        for stored in secrets.store.all_secrets().await? {
            if secrets.keys.is_current(&stored.sealed) {
                continue;
            }
            let Ok(value) = secrets.keys.open_sealed(&stored.sealed, &context(&stored)) else {
                tracing::error!(secret_id = %stored.id, "the key of a secret is missing: it cannot be used");
                continue;
            };
            let Ok(sealed) = secrets.keys.seal(&value, &context(&stored)) else { continue };
            let version = stored.version;
            secrets.store.update_secret(&StoredSecret { sealed, ..stored }, version).await?;
        }
        Ok(secrets)
    }

    /// Stores a new secret.
    ///
    /// # Errors
    /// Something is not valid, the name is taken, or the team has too many.
    pub async fn create(
        &self,
        team: TeamId,
        name: &str,
        value: &str,
        metadata: Metadata,
    ) -> Result<SecretInfo, SecretsError> {
        let name = valid_name(name)?;
        check_value(value)?;
        check_metadata(&metadata)?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let mut stored = StoredSecret {
            id: SecretId::in_order(),
            team,
            name,
            version: 1,
            metadata,
            sealed: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        stored.sealed = self.keys.seal(value.as_bytes(), &context(&stored))?;
        self.store.insert_secret(&stored, MAX_SECRETS).await?;
        Ok(stored.into())
    }

    /// Gives a secret a new value. Metadata that is not given stays.
    ///
    /// # Errors
    /// Something is not valid, there is no such secret, or it was changed at the same time.
    pub async fn update(
        &self,
        team: TeamId,
        selector: &str,
        value: &str,
        metadata: Option<Metadata>,
    ) -> Result<SecretInfo, SecretsError> {
        check_value(value)?;
        if let Some(metadata) = &metadata {
            check_metadata(metadata)?;
        }
        let mut stored = self.find(team, selector).await?;
        let before = stored.version;
        stored.version += 1;
        stored.updated_at = truncate_to_micros(OffsetDateTime::now_utc());
        stored.metadata = metadata.unwrap_or(stored.metadata);
        stored.sealed = self.keys.seal(value.as_bytes(), &context(&stored))?;
        match self.store.update_secret(&stored, before).await? {
            true => Ok(stored.into()),
            false => Err(SecretsError::Conflict),
        }
    }

    /// Returns a secret without its value.
    ///
    /// # Errors
    /// The selector is not valid, or there is no such secret.
    pub async fn get(&self, team: TeamId, selector: &str) -> Result<SecretInfo, SecretsError> {
        Ok(self.find(team, selector).await?.into())
    }

    /// Returns a page of a team's secrets, oldest first, and what the next page begins after.
    ///
    /// # Errors
    /// The limit or the token is not valid.
    pub async fn list(
        &self,
        team: TeamId,
        limit: Option<u32>,
        after: Option<&str>,
    ) -> Result<(Vec<SecretInfo>, Option<String>), SecretsError> {
        let limit = limit.unwrap_or(MAX_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(SecretsError::Invalid);
        }
        let after = after.map(str::parse::<SecretId>).transpose().map_err(|_| SecretsError::Invalid)?;
        let mut page = self.store.secrets(team, after.as_ref(), limit + 1).await?;
        let has_more = page.len() > limit as usize;
        page.truncate(limit as usize);
        let next = page.last().filter(|_| has_more).map(|last| last.id.to_string());
        Ok((page.into_iter().map(Into::into).collect(), next))
    }

    /// Removes a secret. Its name can be used again at once.
    ///
    /// # Errors
    /// The selector is not valid, or there is no such secret.
    pub async fn delete(&self, team: TeamId, selector: &str) -> Result<(), SecretsError> {
        let stored = self.find(team, selector).await?;
        match self.store.delete_secret(team, &stored.id).await? {
            true => Ok(()),
            false => Err(SecretsError::NotFound),
        }
    }

    /// Returns the value of a team's secret, to be sent to a host.
    ///
    /// # Errors
    /// There is no such secret, it is not for this host, or it cannot be decrypted.
    pub async fn value(
        &self,
        team: TeamId,
        name: &str,
        host: &str,
    ) -> Result<Zeroizing<String>, SecretsError> {
        let stored = self.store.secret_by_name(team, name).await?.ok_or(SecretsError::NotFound)?;
        if let Some(hosts) = stored.metadata.get(ALLOWED_HOSTS)
            && !hosts.split(',').any(|pattern| egress_rules::covers(pattern.trim(), host))
        {
            return Err(SecretsError::NotForHost);
        }
        let value = self.keys.open_sealed(&stored.sealed, &context(&stored))?;
        let text = std::str::from_utf8(&value).map_err(|_| KeyError::Damaged)?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// Encrypts the password for a team's proxy, bound to the proxy: in another record it is of no use. Returns hexadecimal digits.
    ///
    /// # Errors
    /// There is no key.
    pub fn seal_proxy_password(
        &self,
        team: TeamId,
        proxy: &EgressProxy,
        password: &str,
    ) -> Result<String, SecretsError> {
        Ok(hex::encode(self.keys.seal(password.as_bytes(), &proxy_context(team, proxy))?))
    }

    /// Returns the password for a team's proxy.
    ///
    /// # Errors
    /// The key is missing, or the password is another proxy's.
    pub fn proxy_password(
        &self,
        team: TeamId,
        proxy: &EgressProxy,
    ) -> Result<Zeroizing<String>, SecretsError> {
        let sealed = proxy.sealed_password.as_deref().unwrap_or_default();
        let sealed = hex::decode(sealed).map_err(|_| KeyError::Damaged)?;
        let password = self.keys.open_sealed(&sealed, &proxy_context(team, proxy))?;
        let text = std::str::from_utf8(&password).map_err(|_| KeyError::Damaged)?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// Finds a secret by its id or its name.
    async fn find(&self, team: TeamId, selector: &str) -> Result<StoredSecret, SecretsError> {
        let selector = selector.trim().to_ascii_lowercase();
        let found = if selector.starts_with(SecretId::PREFIX) {
            let id: SecretId = selector.parse().map_err(|_| SecretsError::Invalid)?;
            self.store.secret_by_id(team, &id).await?
        } else {
            self.store.secret_by_name(team, &valid_name(&selector)?).await?
        };
        found.ok_or(SecretsError::NotFound)
    }
}

/// What a value is bound to: encrypted, it is of no use in another record, and an older version cannot be put back.
fn context(stored: &StoredSecret) -> String {
    format!("cofferdam secret/{}/{}/{}", stored.team, stored.id, stored.version)
}

/// As [`context`], for the password of a proxy. The user's name is last, as it may have any character.
fn proxy_context(team: TeamId, proxy: &EgressProxy) -> String {
    let user = proxy.username.as_deref().unwrap_or_default();
    format!("cofferdam proxy/{team}/{}/{user}", proxy.address())
}

fn valid_name(name: &str) -> Result<String, SecretsError> {
    secret_name(name).ok_or(SecretsError::Invalid)
}

fn check_value(value: &str) -> Result<(), SecretsError> {
    if (1..=MAX_VALUE).contains(&value.len()) { Ok(()) } else { Err(SecretsError::Invalid) }
}

fn check_metadata(metadata: &Metadata) -> Result<(), SecretsError> {
    let total: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let is_valid = metadata.len() <= MAX_METADATA
        && total <= MAX_METADATA_TOTAL
        && metadata
            .iter()
            .all(|(key, value)| key.len() <= MAX_METADATA_KEY && value.len() <= MAX_METADATA_VALUE);
    if is_valid { Ok(()) } else { Err(SecretsError::Invalid) }
}

#[cfg(test)]
mod tests {
    use store::{SqliteStore, Standing, Team, TeamLimits};

    use super::*;

    async fn team(store: &dyn Store) -> TeamId {
        let team = Team {
            id: TeamId::generate(),
            name: "t".to_owned(),
            slug: ids::random_hex::<8>(),
            limits: TeamLimits::default(),
            egress: Default::default(),
            standing: Standing::Good,
            created_at: OffsetDateTime::now_utc(),
        };
        store.put_team(&team).await.unwrap();
        team.id
    }

    #[tokio::test]
    async fn secrets_are_created_changed_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file).await.unwrap());
        let (own, other) = (team(&*store).await, team(&*store).await);
        let keys = Keys::open(&dir.path().join("key")).unwrap();
        let secrets = Secrets::open(Arc::clone(&store), keys).await.unwrap();
        let made = secrets.create(own, " Api_Key ", "canary-4711 ", Metadata::new()).await.unwrap();
        assert_eq!((made.name.as_str(), made.version), ("api_key", 1));
        assert!(matches!(
            secrets.create(own, "API_KEY", "x", Metadata::new()).await,
            Err(SecretsError::Conflict)
        ));
        assert_eq!(*secrets.value(own, "api_key", "a.example").await.unwrap(), "canary-4711 ");
        assert!(matches!(secrets.value(other, "api_key", "a.example").await, Err(SecretsError::NotFound)));
        let hosts = Metadata::from([(ALLOWED_HOSTS.to_owned(), "b.example, *.c.example".to_owned())]);
        let changed = secrets.update(own, made.id.as_str(), "canary-4712", Some(hosts)).await.unwrap();
        assert_eq!(changed.version, 2);
        assert_eq!(*secrets.value(own, "api_key", "x.c.example").await.unwrap(), "canary-4712");
        assert!(matches!(secrets.value(own, "api_key", "a.example").await, Err(SecretsError::NotForHost)));
        for name in ["b", "c"] {
            secrets.create(own, name, "v", Metadata::new()).await.unwrap();
        }
        let (page, next) = secrets.list(own, Some(2), None).await.unwrap();
        assert_eq!(page.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["api_key", "b"]);
        let (page, next) = secrets.list(own, Some(2), next.as_deref()).await.unwrap();
        assert_eq!((page[0].name.as_str(), next), ("c", None));
        for selector in ["sec_1", "a/b", "", "sec_00000000000000000000000000x"] {
            assert!(matches!(secrets.get(own, selector).await, Err(SecretsError::Invalid)), "{selector}");
        }
        assert!(matches!(secrets.delete(other, "api_key").await, Err(SecretsError::NotFound)));
        store.flush().await.unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"canary-"));
        }
        secrets.delete(own, "api_key").await.unwrap();
        secrets.create(own, "api_key", "again", Metadata::new()).await.unwrap();
    }

    #[tokio::test]
    async fn passwords_of_proxies_are_bound_to_team_and_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("store.db")).await.unwrap());
        let secrets = Secrets::open(store, Keys::open(&dir.path().join("key")).unwrap()).await.unwrap();
        let team = TeamId::generate();
        let mut proxy = EgressProxy {
            host: "p.example".to_owned(),
            port: 1080,
            username: Some("u".to_owned()),
            sealed_password: None,
            tls: None,
        };
        proxy.sealed_password = Some(secrets.seal_proxy_password(team, &proxy, "canary").unwrap());
        assert_eq!(*secrets.proxy_password(team, &proxy).unwrap(), "canary");
        assert!(secrets.proxy_password(TeamId::generate(), &proxy).is_err());
        let other = EgressProxy { host: "q.example".to_owned(), ..proxy.clone() };
        assert!(secrets.proxy_password(team, &other).is_err());
        proxy.sealed_password = None;
        assert!(secrets.proxy_password(team, &proxy).is_err());
    }

    #[tokio::test]
    async fn a_new_key_takes_over_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("store.db")).await.unwrap());
        let own = team(&*store).await;
        let path = dir.path().join("key");
        let open = async || Secrets::open(Arc::clone(&store), Keys::open(&path).unwrap()).await.unwrap();
        open().await.create(own, "a", "value", Metadata::new()).await.unwrap();
        let old = std::fs::read_to_string(&path).unwrap();
        let fresh = ids::random_hex::<32>();
        std::fs::write(&path, format!("{fresh}\n{old}")).unwrap();
        assert_eq!(*open().await.value(own, "a", "h").await.unwrap(), "value");
        std::fs::write(&path, &fresh).unwrap();
        assert_eq!(*open().await.value(own, "a", "h").await.unwrap(), "value");
        std::fs::write(&path, &old).unwrap();
        let error = open().await.value(own, "a", "h").await.unwrap_err();
        assert!(matches!(error, SecretsError::Key(KeyError::Missing)), "{error}");
    }
}
