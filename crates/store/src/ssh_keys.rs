//! The records of public keys that SSH clients prove to have.

use async_trait::async_trait;
use ids::{SshKeyId, TeamId};
use time::OffsetDateTime;

use crate::StoreError;

/// A public key of a team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    /// Its id.
    pub id: SshKeyId,
    /// The team whose sandboxes it leads to.
    pub team: TeamId,
    /// Its name, for people.
    pub name: String,
    /// `SHA256:` and the hash of the key in base 64, as SSH clients show it. Unique within the team.
    pub fingerprint: String,
    /// The key as in `authorized_keys`, without a comment.
    pub public_key: String,
    /// When it was added.
    pub created_at: OffsetDateTime,
}

/// The part of a store with public keys.
#[async_trait]
pub trait SshKeyStore: Send + Sync + 'static {
    /// Adds a key. Fails with `Conflict` if its team has it already.
    async fn insert_ssh_key(&self, key: &SshKey) -> Result<(), StoreError>;
    /// Returns all keys, oldest first.
    async fn ssh_keys(&self) -> Result<Vec<SshKey>, StoreError>;
    /// Removes a key; returns false if there is no such key.
    async fn delete_ssh_key(&self, id: SshKeyId) -> Result<bool, StoreError>;
}
