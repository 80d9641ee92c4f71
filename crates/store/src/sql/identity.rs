//! Rows of users, memberships and access tokens.
//! They change rarely, so every write is flushed before it is acknowledged. Deleting a user or a team also deletes its rows here.

use async_trait::async_trait;
use ids::{TeamId, TokenId, UserId};
use sqlx::Row;
use time::OffsetDateTime;

use super::{Database, DbRow, from_micros, json, micros};
use crate::{AccessToken, IdentityStore, StoreError, User};

#[async_trait]
impl IdentityStore for Database {
    async fn insert_user(&self, user: &User) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        sqlx::query("INSERT INTO users (id, email, created_at) VALUES ($1, $2, $3)")
            .bind(user.id.to_string())
            .bind(&user.email)
            .bind(micros(user.created_at))
            .execute(write.conn())
            .await
            .map_err(StoreError::conflict("a user with this e-mail address"))?;
        write.commit().await
    }

    async fn users(&self) -> Result<Vec<User>, StoreError> {
        let rows = sqlx::query("SELECT id, email, created_at FROM users ORDER BY created_at, id")
            .fetch_all(self.reads())
            .await?;
        rows.iter().map(user).collect()
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        let row = sqlx::query("SELECT id, email, created_at FROM users WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(self.reads())
            .await?;
        row.as_ref().map(user).transpose()
    }

    async fn put_member(&self, team: TeamId, user: UserId, at: OffsetDateTime) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        sqlx::query(
            "INSERT INTO members (user_id, team, added_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(user.to_string())
        .bind(team.to_string())
        .bind(micros(at))
        .execute(write.conn())
        .await?;
        write.commit().await
    }

    async fn delete_member(&self, team: TeamId, user: UserId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let done = sqlx::query("DELETE FROM members WHERE user_id = $1 AND team = $2")
            .bind(user.to_string())
            .bind(team.to_string())
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    async fn teams_of(&self, user: UserId) -> Result<Vec<TeamId>, StoreError> {
        let rows = sqlx::query("SELECT team FROM members WHERE user_id = $1 ORDER BY added_at, team")
            .bind(user.to_string())
            .fetch_all(self.reads())
            .await?;
        let team = |row: &DbRow| row.try_get::<String, _>(0)?.parse().map_err(StoreError::damaged("members"));
        rows.iter().map(team).collect()
    }

    async fn insert_token(&self, token: &AccessToken) -> Result<(), StoreError> {
        let mut write = self.write_durably().await?;
        sqlx::query(
            "INSERT INTO access_tokens (id, user_id, name, hash, mask_json, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(token.id.to_string())
        .bind(token.user.to_string())
        .bind(&token.name)
        .bind(&token.hash)
        .bind(json(&token.mask))
        .bind(micros(token.created_at))
        .execute(write.conn())
        .await
        .map_err(StoreError::conflict("this token"))?;
        write.commit().await
    }

    async fn user_by_token(&self, hash: &str) -> Result<Option<User>, StoreError> {
        let row = sqlx::query(
            "SELECT u.id, u.email, u.created_at FROM access_tokens t JOIN users u ON u.id = t.user_id \
             WHERE t.hash = $1",
        )
        .bind(hash)
        .fetch_optional(self.reads())
        .await?;
        row.as_ref().map(user).transpose()
    }

    async fn delete_token(&self, user: Option<UserId>, id: TokenId) -> Result<bool, StoreError> {
        let mut write = self.write_durably().await?;
        let owner = user.map(|user| user.to_string());
        let done = sqlx::query("DELETE FROM access_tokens WHERE id = $1 AND ($2 IS NULL OR user_id = $2)")
            .bind(id.to_string())
            .bind(owner)
            .execute(write.conn())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }
}

fn user(row: &DbRow) -> Result<User, StoreError> {
    let id: String = row.try_get(0)?;
    Ok(User {
        id: id.parse().map_err(StoreError::damaged("users"))?,
        email: row.try_get(1)?,
        created_at: from_micros("users", row.try_get(2)?)?,
    })
}
