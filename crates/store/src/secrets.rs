//! Secrets of teams. The store sees their values encrypted only; crate `secrets` has the key.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ids::{SecretId, TeamId};
use time::OffsetDateTime;

use crate::StoreError;

/// A secret with its encrypted value.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredSecret {
    /// Its id.
    pub id: SecretId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its name, in lower case: one of a team.
    pub name: String,
    /// Counts its values.
    pub version: u64,
    /// Metadata of the user.
    pub metadata: BTreeMap<String, String>,
    /// The encrypted value.
    pub sealed: Vec<u8>,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When its value was last set.
    pub updated_at: OffsetDateTime,
}

impl std::fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredSecret")
            .field("id", &self.id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The part of a store with teams' secrets.
#[async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Adds a secret. Fails with `Conflict` if the team has the name, or has `max` secrets already.
    async fn insert_secret(&self, secret: &StoredSecret, max: u32) -> Result<(), StoreError>;
    /// Returns secrets of a team by id, those after `after`, at most `limit`.
    async fn secrets(
        &self,
        team: TeamId,
        after: Option<&SecretId>,
        limit: u32,
    ) -> Result<Vec<StoredSecret>, StoreError>;
    /// Returns the secrets of all teams.
    async fn all_secrets(&self) -> Result<Vec<StoredSecret>, StoreError>;
    /// Returns a team's secret of this name.
    async fn secret_by_name(&self, team: TeamId, name: &str) -> Result<Option<StoredSecret>, StoreError>;
    /// Returns a team's secret of this id.
    async fn secret_by_id(&self, team: TeamId, id: &SecretId) -> Result<Option<StoredSecret>, StoreError>;
    /// Replaces version, metadata, value and time of a secret whose version is `before`; returns false if there is no such secret.
    async fn update_secret(&self, secret: &StoredSecret, before: u64) -> Result<bool, StoreError>;
    /// Removes a team's secret; returns false if there is no such secret.
    async fn delete_secret(&self, team: TeamId, id: &SecretId) -> Result<bool, StoreError>;
}
