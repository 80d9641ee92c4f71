//! Rows of public keys for SSH. Every write is flushed before it is acknowledged.

use async_trait::async_trait;
use ids::SshKeyId;
use sqlx::Row;

use super::{Database, DbRow, from_micros, micros};
use crate::{SshKey, SshKeyStore, StoreError};

#[async_trait]
impl SshKeyStore for Database {
    async fn insert_ssh_key(&self, key: &SshKey) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        sqlx::query(
            "INSERT INTO ssh_keys (id, team, name, fingerprint, public_key, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(key.id.to_string())
        .bind(key.team.to_string())
        .bind(&key.name)
        .bind(&key.fingerprint)
        .bind(&key.public_key)
        .bind(micros(key.created_at))
        .execute(write.conn())
        .await
        .map_err(StoreError::conflict("this SSH key"))?;
        write.commit().await
    }

    async fn ssh_keys(&self) -> Result<Vec<SshKey>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, team, name, fingerprint, public_key, created_at FROM ssh_keys ORDER BY created_at, id",
        )
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(ssh_key).collect()
    }

    async fn delete_ssh_key(&self, id: SshKeyId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("DELETE FROM ssh_keys WHERE id = $1")
            .bind(id.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}

fn ssh_key(row: &DbRow) -> Result<SshKey, StoreError> {
    let (id, team): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(SshKey {
        id: id.parse().map_err(StoreError::damaged("ssh_keys"))?,
        team: team.parse().map_err(StoreError::damaged("ssh_keys"))?,
        name: row.try_get(2)?,
        fingerprint: row.try_get(3)?,
        public_key: row.try_get(4)?,
        created_at: from_micros("ssh_keys", row.try_get(5)?)?,
    })
}
