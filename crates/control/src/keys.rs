//! API keys, and [`Accounts`]: teams and keys in memory. A key is looked up by its hash, which is over the decoded bytes and so has the
//! strength of the random value. Keys that another process created are found in the store at their first use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ids::{KeyId, TeamId};
use net::OperatorPolicies;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use store::{ApiKey, Mask, Team, truncate_to_micros};
use time::OffsetDateTime;

use crate::team_egress::policy_of;
use crate::{AuthError, Control, ControlError};

/// Prefix of every key.
pub const KEY_PREFIX: &str = "e2b_";

/// A newly created key, with its secret, which is not stored.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The whole key, prefix included.
    pub secret: String,
    /// Its record.
    pub record: ApiKey,
}

/// Teams and keys in memory.
#[derive(Debug)]
pub(crate) struct Accounts {
    inner: RwLock<Inner>,
    /// Told where the teams' sandboxes may connect to.
    operator: Arc<OperatorPolicies>,
}

#[derive(Debug, Default)]
struct Inner {
    teams: HashMap<TeamId, Arc<Team>>,
    /// The oldest team, for calls that name none.
    default_team: Option<TeamId>,
    by_hash: HashMap<String, (KeyId, TeamId)>,
    /// Keys that exist.
    ids: HashSet<KeyId>,
}

impl Inner {
    fn add_key(&mut self, hash: String, id: KeyId, team: TeamId) {
        self.by_hash.insert(hash, (id, team));
        self.ids.insert(id);
    }

    fn remove_key(&mut self, id: KeyId) {
        self.by_hash.retain(|_, (key, _)| *key != id);
        self.ids.remove(&id);
    }
}

impl Accounts {
    pub(crate) fn new(operator: Arc<OperatorPolicies>) -> Self {
        Self { inner: RwLock::default(), operator }
    }

    /// Replaces all teams and keys.
    pub(crate) fn load(&self, teams: Vec<Team>, keys: Vec<ApiKey>) {
        for team in &teams {
            self.operator.set_team(team.id.as_u128(), policy_of(team));
        }
        let mut inner = self.inner.write();
        inner.default_team = teams.first().map(|team| team.id);
        inner.teams = teams.into_iter().map(|team| (team.id, Arc::new(team))).collect();
        inner.ids = keys.iter().map(|key| key.id).collect();
        inner.by_hash = keys.into_iter().map(|key| (key.hash, (key.id, key.team))).collect();
    }

    /// Returns the team with this id.
    pub(crate) fn team(&self, id: TeamId) -> Option<Arc<Team>> {
        self.inner.read().teams.get(&id).cloned()
    }

    /// Adds a team, or replaces the one with its id.
    pub(crate) fn put(&self, team: Team) -> Arc<Team> {
        self.operator.set_team(team.id.as_u128(), policy_of(&team));
        let team = Arc::new(team);
        self.inner.write().teams.insert(team.id, Arc::clone(&team));
        team
    }

    fn by_hash(&self, hash: &str) -> Option<(KeyId, Arc<Team>)> {
        let inner = self.inner.read();
        let (key, team) = inner.by_hash.get(hash)?;
        Some((*key, Arc::clone(inner.teams.get(team)?)))
    }
}

/// Returns the hash that is stored for a key's decoded bytes.
fn hash(bytes: &[u8]) -> String {
    format!("$sha256${}", STANDARD_NO_PAD.encode(Sha256::digest(bytes)))
}

/// Returns the hash by which a presented key or token is looked up.
pub(crate) fn hash_of(prefix: &str, presented: &str) -> Result<String, AuthError> {
    let value = presented.strip_prefix(prefix).ok_or(AuthError::Malformed)?;
    let bytes = hex::decode(value).map_err(|_| AuthError::Format)?;
    Ok(hash(&bytes))
}

/// Creates a secret with this prefix; returns it, its hash, and what may be shown of it.
pub(crate) fn new_secret(prefix: &str) -> (String, String, Mask) {
    let value = ids::random_hex::<20>();
    let bytes = hex::decode(&value).expect("random_hex makes hexadecimal digits");
    let mask = Mask {
        prefix: prefix.to_owned(),
        value_length: value.len(),
        first: value[..2].to_owned(),
        last: value[value.len() - 4..].to_owned(),
    };
    (format!("{prefix}{value}"), hash(&bytes), mask)
}

impl Control {
    /// Returns the team that a key belongs to, and the key's id.
    ///
    /// # Errors
    /// The key is malformed or unknown.
    pub async fn authenticate(&self, key: &str) -> Result<(Arc<Team>, KeyId), AuthError> {
        let hash = hash_of(KEY_PREFIX, key)?;
        let (id, team) = match self.accounts.by_hash(&hash) {
            Some(found) => found,
            None => self.find_key_in_store(&hash).await?.ok_or(AuthError::Unknown)?,
        };
        self.usage.key_used(id);
        Ok((team, id))
    }

    /// Returns whether a key still exists.
    #[must_use]
    pub fn has_key(&self, id: KeyId) -> bool {
        self.accounts.inner.read().ids.contains(&id)
    }

    /// Looks for a key that another process put into the store.
    async fn find_key_in_store(&self, hash: &str) -> Result<Option<(KeyId, Arc<Team>)>, AuthError> {
        let Some(key) = self.store.key_by_hash(hash).await? else { return Ok(None) };
        if self.accounts.team(key.team).is_none() {
            self.accounts.load(self.store.teams().await?, self.store.keys().await?);
        } else {
            self.accounts.inner.write().add_key(key.hash, key.id, key.team);
        }
        Ok(self.accounts.by_hash(hash))
    }

    /// Returns the team with this id.
    #[must_use]
    pub fn team(&self, id: TeamId) -> Option<Arc<Team>> {
        self.accounts.team(id)
    }

    /// Returns the team of calls that name none.
    #[must_use]
    pub fn default_team(&self) -> Arc<Team> {
        let inner = self.accounts.inner.read();
        let id = inner.default_team.expect("open() makes a team if there is none");
        Arc::clone(inner.teams.get(&id).expect("the default team is one of the teams"))
    }

    /// Returns all teams, the default one first.
    #[must_use]
    pub fn teams(&self) -> Vec<Arc<Team>> {
        let mut teams: Vec<_> = self.accounts.inner.read().teams.values().cloned().collect();
        teams.sort_by_key(|team| (team.created_at, team.id));
        teams
    }

    /// Creates a key for a team.
    ///
    /// # Errors
    /// No such team, or the store failed.
    pub async fn create_key(&self, team: TeamId, name: &str) -> Result<NewKey, ControlError> {
        if self.team(team).is_none() {
            return Err(ControlError::TeamNotFound);
        }
        let (secret, hash, mask) = new_secret(KEY_PREFIX);
        let record = ApiKey {
            id: KeyId::generate(),
            team,
            name: name.to_owned(),
            hash,
            mask,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
            last_used: None,
        };
        self.store.insert_key(&record).await?;
        self.accounts.inner.write().add_key(record.hash.clone(), record.id, team);
        tracing::info!(key_id = %record.id, team_id = %team, "API key created");
        Ok(NewKey { secret, record })
    }

    /// Returns a team's keys, oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_keys(&self, team: TeamId) -> Result<Vec<ApiKey>, ControlError> {
        self.usage.flush(&*self.store, self.catalog()).await;
        let mut keys = self.store.keys().await?;
        keys.retain(|key| key.team == team);
        Ok(keys)
    }

    /// Renames a key.
    ///
    /// # Errors
    /// No such key, or the store failed.
    pub async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<(), ControlError> {
        if self.store.rename_key(team, id, name).await? { Ok(()) } else { Err(ControlError::KeyNotFound) }
    }

    /// Deletes a key, which is refused from now on.
    ///
    /// # Errors
    /// No such key, or the store failed.
    pub async fn delete_key(&self, team: TeamId, id: KeyId) -> Result<(), ControlError> {
        if !self.store.delete_key(team, id).await? {
            return Err(ControlError::KeyNotFound);
        }
        self.accounts.inner.write().remove_key(id);
        tracing::info!(key_id = %id, team_id = %team, "API key deleted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_over_the_decoded_bytes() {
        // printf '\x00\x01' | sha256sum | xxd -r -p | base64, without padding
        assert_eq!(
            hash_of(KEY_PREFIX, "e2b_0001").unwrap(),
            "$sha256$tBP0fRPuL+bIRbLuFBr4HehY307FSaWLeXC7lmRbyNI"
        );
        assert_eq!(hash_of(KEY_PREFIX, "e2b_AB").unwrap(), hash_of(KEY_PREFIX, "e2b_ab").unwrap());
    }

    #[test]
    fn malformed_keys_have_different_errors() {
        assert!(matches!(hash_of(KEY_PREFIX, "sk_00"), Err(AuthError::Malformed)));
        assert!(matches!(hash_of(KEY_PREFIX, ""), Err(AuthError::Malformed)));
        assert!(matches!(hash_of(KEY_PREFIX, "e2b_xyz"), Err(AuthError::Format)));
        assert!(matches!(hash_of(KEY_PREFIX, "e2b_abc"), Err(AuthError::Format)), "an odd number of digits");
    }
}
