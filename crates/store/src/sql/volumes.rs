//! Rows of volumes. Every write is flushed before it is acknowledged.

use async_trait::async_trait;
use ids::VolumeId;
use sqlx::Row;

use super::{Database, DbRow, from_micros, micros};
use crate::{StoreError, Volume, VolumeStore};

#[async_trait]
impl VolumeStore for Database {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        sqlx::query(
            "INSERT INTO volumes (id, team, name, size_limit_mib, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(volume.id.to_string())
        .bind(volume.team.to_string())
        .bind(&volume.name)
        .bind(volume.size_limit_mib.map(i64::from))
        .bind(micros(volume.created_at))
        .execute(write.conn())
        .await
        .map_err(StoreError::conflict("a volume with this name"))?;
        write.commit().await
    }

    async fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, team, name, size_limit_mib, created_at FROM volumes ORDER BY created_at, id",
        )
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(volume).collect()
    }

    async fn set_volume_limit(&self, id: VolumeId, size_limit_mib: Option<u32>) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("UPDATE volumes SET size_limit_mib = $1 WHERE id = $2")
            .bind(size_limit_mib.map(i64::from))
            .bind(id.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("DELETE FROM volumes WHERE id = $1")
            .bind(id.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}

fn volume(row: &DbRow) -> Result<Volume, StoreError> {
    let (id, team): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let limit: Option<i64> = row.try_get(3)?;
    Ok(Volume {
        id: id.parse().map_err(StoreError::damaged("volumes"))?,
        team: team.parse().map_err(StoreError::damaged("volumes"))?,
        name: row.try_get(2)?,
        size_limit_mib: limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
        created_at: from_micros("volumes", row.try_get(4)?)?,
    })
}
