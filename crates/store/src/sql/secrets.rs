//! Rows of teams' secrets. They change rarely, so every write is flushed before it is acknowledged.

use async_trait::async_trait;
use ids::{SecretId, TeamId};
use sqlx::Row;

use super::{Database, DbRow, from_micros, json, micros};
use crate::{SecretStore, StoreError, StoredSecret};

const TABLE: &str = "team_secrets";

#[async_trait]
impl SecretStore for Database {
    async fn insert_secret(&self, secret: &StoredSecret, max: u32) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        let count = sqlx::query("SELECT COUNT(*) FROM team_secrets WHERE team = $1")
            .bind(secret.team.to_string())
            .fetch_one(write.conn())
            .await?
            .try_get::<i64, _>(0)?;
        if count >= i64::from(max) {
            return Err(StoreError::Conflict("as many secrets as a team may have"));
        }
        sqlx::query(
            "INSERT INTO team_secrets (id, team, name, version, metadata_json, sealed, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(secret.id.as_str())
        .bind(secret.team.to_string())
        .bind(&secret.name)
        .bind(version(secret.version))
        .bind(json(&secret.metadata))
        .bind(&secret.sealed)
        .bind(micros(secret.created_at))
        .bind(micros(secret.updated_at))
        .execute(write.conn())
        .await
        .map_err(StoreError::conflict("a secret with this name"))?;
        write.commit().await
    }

    async fn secrets(
        &self,
        team: TeamId,
        after: Option<&SecretId>,
        limit: u32,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, team, name, version, metadata_json, sealed, created_at, updated_at FROM team_secrets \
             WHERE team = $1 AND id > $2 ORDER BY id LIMIT $3",
        )
        .bind(team.to_string())
        .bind(after.map_or("", SecretId::as_str))
        .bind(i64::from(limit))
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(secret).collect()
    }

    async fn all_secrets(&self) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, team, name, version, metadata_json, sealed, created_at, updated_at FROM team_secrets ORDER BY id",
        )
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(secret).collect()
    }

    async fn secret_by_name(&self, team: TeamId, name: &str) -> Result<Option<StoredSecret>, StoreError> {
        let row = sqlx::query(
            "SELECT id, team, name, version, metadata_json, sealed, created_at, updated_at FROM team_secrets \
             WHERE team = $1 AND name = $2",
        )
        .bind(team.to_string())
        .bind(name)
        .fetch_optional(self.reads())
        .await?;
        row.as_ref().map(secret).transpose()
    }

    async fn secret_by_id(&self, team: TeamId, id: &SecretId) -> Result<Option<StoredSecret>, StoreError> {
        let row = sqlx::query(
            "SELECT id, team, name, version, metadata_json, sealed, created_at, updated_at FROM team_secrets \
             WHERE team = $1 AND id = $2",
        )
        .bind(team.to_string())
        .bind(id.as_str())
        .fetch_optional(self.reads())
        .await?;
        row.as_ref().map(secret).transpose()
    }

    async fn update_secret(&self, secret: &StoredSecret, before: u64) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query(
            "UPDATE team_secrets SET version = $1, metadata_json = $2, sealed = $3, updated_at = $4 \
             WHERE id = $5 AND team = $6 AND version = $7",
        )
        .bind(version(secret.version))
        .bind(json(&secret.metadata))
        .bind(&secret.sealed)
        .bind(micros(secret.updated_at))
        .bind(secret.id.as_str())
        .bind(secret.team.to_string())
        .bind(version(before))
        .execute(write.conn())
        .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete_secret(&self, team: TeamId, id: &SecretId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("DELETE FROM team_secrets WHERE id = $1 AND team = $2")
            .bind(id.as_str())
            .bind(team.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}

fn version(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn secret(row: &DbRow) -> Result<StoredSecret, StoreError> {
    let (id, team): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let metadata: String = row.try_get(4)?;
    Ok(StoredSecret {
        id: id.parse().map_err(StoreError::damaged(TABLE))?,
        team: team.parse().map_err(StoreError::damaged(TABLE))?,
        name: row.try_get(2)?,
        version: u64::try_from(row.try_get::<i64, _>(3)?).map_err(StoreError::damaged(TABLE))?,
        metadata: serde_json::from_str(&metadata).map_err(StoreError::damaged(TABLE))?,
        sealed: row.try_get(5)?,
        created_at: from_micros(TABLE, row.try_get(6)?)?,
        updated_at: from_micros(TABLE, row.try_get(7)?)?,
    })
}
