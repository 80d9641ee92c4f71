//! The records of volumes. Their content is in the crate `volumes`.

use async_trait::async_trait;
use ids::{TeamId, VolumeId};
use time::OffsetDateTime;

use crate::StoreError;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The team that owns it.
    pub team: TeamId,
    /// Its name, unique within the team.
    pub name: String,
    /// Maximum size of its content, MiB; `None` without a limit.
    pub size_limit_mib: Option<u32>,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// The part of a store with volumes.
#[async_trait]
pub trait VolumeStore: Send + Sync + 'static {
    /// Adds a volume. Fails with `Conflict` if its team has one with this name.
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError>;
    /// Returns all volumes, oldest first.
    async fn volumes(&self) -> Result<Vec<Volume>, StoreError>;
    /// Sets a volume's limit; returns false if there is no such volume.
    async fn set_volume_limit(&self, id: VolumeId, size_limit_mib: Option<u32>) -> Result<bool, StoreError>;
    /// Removes a volume; returns false if there is no such volume.
    async fn delete_volume(&self, id: VolumeId) -> Result<bool, StoreError>;
}
