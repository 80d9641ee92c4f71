//! Rows of sandboxes and of the idempotency keys of their create requests.
//! A create writes one row; fields that no query needs are one JSON document. Ended sandboxes are never changed.

use ids::{SandboxId, TeamId};
use sqlx::Row;
use time::OffsetDateTime;

use super::{DbConnection, DbPool, DbRow, from_micros, json, micros};
use crate::{Idempotency, Sandbox, SandboxDetails, SandboxState, StoreError};

pub(super) async fn insert(conn: &mut DbConnection, sandbox: &Sandbox) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sandboxes (id, team, template, build, execution, state, started_at, end_at, ended_at, \
         end_reason, details_json, pause_json) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(sandbox.id.as_str())
    .bind(sandbox.team.to_string())
    .bind(sandbox.template.as_str())
    .bind(sandbox.build.to_string())
    .bind(sandbox.execution.to_string())
    .bind(sandbox.state.as_str())
    .bind(micros(sandbox.started_at))
    .bind(micros(sandbox.end_at))
    .bind(sandbox.ended_at.map(micros))
    .bind(&sandbox.end_reason)
    .bind(json(&sandbox.details))
    .bind(sandbox.pause.as_ref().map(json))
    .execute(conn)
    .await
    .map_err(StoreError::conflict("this sandbox"))?;
    Ok(())
}

pub(super) async fn get(pool: &DbPool, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
    let row = sqlx::query(
        "SELECT id, team, template, build, execution, state, started_at, end_at, ended_at, end_reason, \
         details_json, pause_json FROM sandboxes WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(sandbox).transpose()
}

pub(super) async fn open(pool: &DbPool) -> Result<Vec<Sandbox>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, team, template, build, execution, state, started_at, end_at, ended_at, end_reason, \
         details_json, pause_json FROM sandboxes WHERE state IN ('running', 'paused') ORDER BY started_at, id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(sandbox).collect()
}

fn sandbox(row: &DbRow) -> Result<Sandbox, StoreError> {
    const TABLE: &str = "sandboxes";
    let text = |column: usize| row.try_get::<String, _>(column);
    let ended_at: Option<i64> = row.try_get(8)?;
    let pause: Option<String> = row.try_get(11)?;
    let pause = pause.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Sandbox {
        pause: pause.map_err(StoreError::damaged(TABLE))?,
        id: text(0)?.parse().map_err(StoreError::damaged(TABLE))?,
        team: text(1)?.parse().map_err(StoreError::damaged(TABLE))?,
        template: text(2)?.parse().map_err(StoreError::damaged(TABLE))?,
        build: text(3)?.parse().map_err(StoreError::damaged(TABLE))?,
        execution: text(4)?.parse().map_err(StoreError::damaged(TABLE))?,
        state: SandboxState::parse(&text(5)?).map_err(StoreError::damaged(TABLE))?,
        started_at: from_micros(TABLE, row.try_get(6)?)?,
        end_at: from_micros(TABLE, row.try_get(7)?)?,
        ended_at: ended_at.map(|at| from_micros(TABLE, at)).transpose()?,
        end_reason: row.try_get(9)?,
        details: serde_json::from_str(&text(10)?).map_err(StoreError::damaged(TABLE))?,
    })
}

pub(super) async fn set_end(
    conn: &mut DbConnection,
    id: &SandboxId,
    end_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE sandboxes SET end_at = $1 WHERE id = $2 AND state <> 'ended'")
        .bind(micros(end_at))
        .bind(id.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn set_details(
    conn: &mut DbConnection,
    id: &SandboxId,
    details: &SandboxDetails,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE sandboxes SET details_json = $1 WHERE id = $2 AND state <> 'ended'")
        .bind(json(details))
        .bind(id.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn put(conn: &mut DbConnection, sandbox: &Sandbox) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE sandboxes SET execution = $1, state = $2, started_at = $3, end_at = $4, details_json = $5, pause_json = $6 \
         WHERE id = $7 AND state <> 'ended'",
    )
    .bind(sandbox.execution.to_string())
    .bind(sandbox.state.as_str())
    .bind(micros(sandbox.started_at))
    .bind(micros(sandbox.end_at))
    .bind(json(&sandbox.details))
    .bind(sandbox.pause.as_ref().map(json))
    .bind(sandbox.id.as_str())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn finish(
    conn: &mut DbConnection,
    id: &SandboxId,
    ended_at: OffsetDateTime,
    reason: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE sandboxes SET state = 'ended', ended_at = $1, end_reason = $2 WHERE id = $3 AND state <> 'ended'",
    )
    .bind(micros(ended_at))
    .bind(reason)
    .bind(id.as_str())
    .execute(conn)
    .await?;
    Ok(())
}

pub(super) async fn insert_idempotency(
    conn: &mut DbConnection,
    record: &Idempotency,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO idempotency_keys (team, key, body_hash, sandbox, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(record.team.to_string())
    .bind(&record.key)
    .bind(record.body_hash.as_slice())
    .bind(record.sandbox.as_str())
    .bind(micros(record.created_at))
    .execute(conn)
    .await
    .map_err(StoreError::conflict("this idempotency key"))?;
    Ok(())
}

pub(super) async fn idempotency(
    pool: &DbPool,
    team: TeamId,
    key: &str,
) -> Result<Option<Idempotency>, StoreError> {
    const TABLE: &str = "idempotency_keys";
    let row = sqlx::query(
        "SELECT body_hash, sandbox, created_at FROM idempotency_keys WHERE team = $1 AND key = $2",
    )
    .bind(team.to_string())
    .bind(key)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let body_hash: Vec<u8> = row.try_get(0)?;
    let sandbox: String = row.try_get(1)?;
    Ok(Some(Idempotency {
        team,
        key: key.to_owned(),
        body_hash: body_hash
            .try_into()
            .map_err(|_| StoreError::Damaged { table: TABLE, detail: "a hash of odd length".to_owned() })?,
        sandbox: sandbox.parse().map_err(StoreError::damaged(TABLE))?,
        created_at: from_micros(TABLE, row.try_get(2)?)?,
    }))
}

pub(super) async fn prune(conn: &mut DbConnection, before: OffsetDateTime) -> Result<u64, StoreError> {
    sqlx::query("DELETE FROM idempotency_keys WHERE created_at < $1")
        .bind(micros(before))
        .execute(&mut *conn)
        .await?;
    let done = sqlx::query("DELETE FROM sandboxes WHERE state = 'ended' AND ended_at < $1")
        .bind(micros(before))
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}
