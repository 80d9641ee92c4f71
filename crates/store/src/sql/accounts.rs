//! Rows of secrets, teams and keys. Keys are stored as hashes; the only secrets are the server's own.
//! Functions take a connection, so that callers choose the transaction.

use ids::{KeyId, TeamId};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use time::OffsetDateTime;

use super::{DbConnection, DbPool, DbRow, from_micros, json, micros};
use crate::{ApiKey, Standing, StoreError, Team, TeamEgress, TeamLimits};

pub(super) async fn secret(conn: &mut DbConnection, name: &str, fresh: &[u8]) -> Result<Vec<u8>, StoreError> {
    sqlx::query("INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(fresh)
        .execute(&mut *conn)
        .await?;
    let row = sqlx::query("SELECT value FROM secrets WHERE name = $1").bind(name).fetch_one(conn).await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn put_team(conn: &mut DbConnection, team: &Team) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO teams (id, name, slug, limits_json, created_at, banned, blocked_reason) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET name = $2, slug = $3, \
         limits_json = $4, banned = $6, blocked_reason = $7",
    )
    .bind(team.id.to_string())
    .bind(&team.name)
    .bind(&team.slug)
    .bind(json(&Allowances { limits: team.limits, egress: team.egress.clone() }))
    .bind(micros(team.created_at))
    .bind(team.standing == Standing::Banned)
    .bind(match &team.standing {
        Standing::Blocked(reason) => Some(reason),
        _ => None,
    })
    .execute(conn)
    .await
    .map_err(StoreError::conflict("a team with this slug"))?;
    Ok(())
}

pub(super) async fn teams(pool: &DbPool) -> Result<Vec<Team>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, name, slug, limits_json, created_at, banned, blocked_reason FROM teams \
         ORDER BY created_at, id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(team).collect()
}

/// The document in `limits_json`.
#[derive(Serialize, Deserialize)]
struct Allowances {
    #[serde(flatten)]
    limits: TeamLimits,
    #[serde(default)]
    egress: TeamEgress,
}

fn team(row: &DbRow) -> Result<Team, StoreError> {
    let id: String = row.try_get(0)?;
    let allowances: String = row.try_get(3)?;
    let allowances: Allowances = serde_json::from_str(&allowances).map_err(StoreError::damaged("teams"))?;
    Ok(Team {
        id: id.parse().map_err(StoreError::damaged("teams"))?,
        name: row.try_get(1)?,
        slug: row.try_get(2)?,
        limits: allowances.limits,
        egress: allowances.egress,
        created_at: from_micros("teams", row.try_get(4)?)?,
        standing: if row.try_get(5)? {
            Standing::Banned
        } else {
            row.try_get::<Option<String>, _>(6)?.map_or(Standing::Good, Standing::Blocked)
        },
    })
}

pub(super) async fn insert_key(conn: &mut DbConnection, key: &ApiKey) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO api_keys (id, team, name, hash, mask_json, created_at, last_used) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(key.id.to_string())
    .bind(key.team.to_string())
    .bind(&key.name)
    .bind(&key.hash)
    .bind(json(&key.mask))
    .bind(micros(key.created_at))
    .bind(key.last_used.map(micros))
    .execute(conn)
    .await
    .map_err(StoreError::conflict("this key"))?;
    Ok(())
}

pub(super) async fn keys(pool: &DbPool) -> Result<Vec<ApiKey>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, team, name, hash, mask_json, created_at, last_used FROM api_keys ORDER BY created_at, id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(key).collect()
}

pub(super) async fn key_by_hash(pool: &DbPool, hash: &str) -> Result<Option<ApiKey>, StoreError> {
    let row = sqlx::query(
        "SELECT id, team, name, hash, mask_json, created_at, last_used FROM api_keys WHERE hash = $1",
    )
    .bind(hash)
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(key).transpose()
}

fn key(row: &DbRow) -> Result<ApiKey, StoreError> {
    let id: String = row.try_get(0)?;
    let team: String = row.try_get(1)?;
    let mask: String = row.try_get(4)?;
    let last_used: Option<i64> = row.try_get(6)?;
    Ok(ApiKey {
        id: id.parse().map_err(StoreError::damaged("api_keys"))?,
        team: team.parse().map_err(StoreError::damaged("api_keys"))?,
        name: row.try_get(2)?,
        hash: row.try_get(3)?,
        mask: serde_json::from_str(&mask).map_err(StoreError::damaged("api_keys"))?,
        created_at: from_micros("api_keys", row.try_get(5)?)?,
        last_used: last_used.map(|at| from_micros("api_keys", at)).transpose()?,
    })
}

pub(super) async fn rename_key(
    conn: &mut DbConnection,
    team: TeamId,
    id: KeyId,
    name: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE api_keys SET name = $1 WHERE id = $2 AND team = $3")
        .bind(name)
        .bind(id.to_string())
        .bind(team.to_string())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn delete_key(conn: &mut DbConnection, team: TeamId, id: KeyId) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM api_keys WHERE id = $1 AND team = $2")
        .bind(id.to_string())
        .bind(team.to_string())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn touch_key(
    conn: &mut DbConnection,
    id: KeyId,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE api_keys SET last_used = $1 WHERE id = $2 AND (last_used IS NULL OR last_used < $1)")
        .bind(micros(at))
        .bind(id.to_string())
        .execute(conn)
        .await?;
    Ok(())
}
