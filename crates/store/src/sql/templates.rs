//! Rows of templates, their names, builds and tags.
//! A template's names are replaced as a set.
//! Functions take a connection, so that callers choose the transaction.

use std::collections::HashMap;

use ids::{BuildId, TemplateId};
use sqlx::Row;
use time::OffsetDateTime;

use super::{Database, DbConnection, DbPool, DbRow, from_micros, json, micros, small};
use crate::{Build, BuildStatus, StoreError, TagAssignment, Template, TemplateName};

pub(super) async fn templates(database: &Database) -> Result<Vec<Template>, StoreError> {
    // In one transaction, so that names and templates match.
    let mut tx = database.read_together().await?;
    let name_rows =
        sqlx::query("SELECT template, namespace, alias FROM template_names ORDER BY namespace, alias")
            .fetch_all(&mut *tx)
            .await?;
    let mut names: HashMap<String, Vec<TemplateName>> = HashMap::new();
    for row in &name_rows {
        let namespace: String = row.try_get(1)?;
        names.entry(row.try_get(0)?).or_default().push(TemplateName {
            namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
            alias: row.try_get(2)?,
        });
    }
    let rows = sqlx::query(
        "SELECT id, team, public, created_at, updated_at, spawn_count, last_spawned FROM templates \
         ORDER BY created_at, id",
    )
    .fetch_all(&mut *tx)
    .await?;
    rows.iter().map(|row| template(row, &mut names)).collect()
}

fn template(row: &DbRow, names: &mut HashMap<String, Vec<TemplateName>>) -> Result<Template, StoreError> {
    let id: String = row.try_get(0)?;
    let team: Option<String> = row.try_get(1)?;
    let spawn_count: i64 = row.try_get(5)?;
    let last_spawned: Option<i64> = row.try_get(6)?;
    Ok(Template {
        names: names.remove(&id).unwrap_or_default(),
        id: id.parse().map_err(StoreError::damaged("templates"))?,
        team: team.map(|team| team.parse()).transpose().map_err(StoreError::damaged("templates"))?,
        public: row.try_get(2)?,
        created_at: from_micros("templates", row.try_get(3)?)?,
        updated_at: from_micros("templates", row.try_get(4)?)?,
        spawn_count: u64::try_from(spawn_count).unwrap_or(0),
        last_spawned: last_spawned.map(|at| from_micros("templates", at)).transpose()?,
    })
}

pub(super) async fn put_template(conn: &mut DbConnection, template: &Template) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO templates (id, team, public, created_at, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET team = $2, public = $3, updated_at = $5",
    )
    .bind(template.id.as_str())
    .bind(template.team.map(|team| team.to_string()))
    .bind(template.public)
    .bind(micros(template.created_at))
    .bind(micros(template.updated_at))
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM template_names WHERE template = $1")
        .bind(template.id.as_str())
        .execute(&mut *conn)
        .await?;
    for name in &template.names {
        sqlx::query("INSERT INTO template_names (namespace, alias, template) VALUES ($1, $2, $3)")
            .bind(name.namespace.as_deref().unwrap_or(""))
            .bind(&name.alias)
            .bind(template.id.as_str())
            .execute(&mut *conn)
            .await
            .map_err(StoreError::conflict("a template with this name"))?;
    }
    Ok(())
}

pub(super) async fn delete_template(conn: &mut DbConnection, id: &TemplateId) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM templates WHERE id = $1").bind(id.as_str()).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn count_spawns(
    conn: &mut DbConnection,
    id: &TemplateId,
    count: u64,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE templates SET spawn_count = spawn_count + $1, last_spawned = $2 WHERE id = $3")
        .bind(i64::try_from(count).unwrap_or(i64::MAX))
        .bind(micros(at))
        .bind(id.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn insert_build(conn: &mut DbConnection, build: &Build) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO builds (id, template, status, cpu_count, memory_mib, disk_mib, envd_version, layers_json, \
         config_json, created_at, finished_at, snapshot_json, failure_json) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(build.id.to_string())
    .bind(build.template.as_str())
    .bind(build.status.as_str())
    .bind(i64::from(build.cpu_count))
    .bind(i64::from(build.memory_mib))
    .bind(i64::from(build.disk_mib))
    .bind(&build.envd_version)
    .bind(json(&build.layers))
    .bind(json(&build.config))
    .bind(micros(build.created_at))
    .bind(build.finished_at.map(micros))
    .bind(build.snapshot.as_ref().map(json))
    .bind(build.failure.as_ref().map(json))
    .execute(conn)
    .await
    .map_err(StoreError::conflict("this build"))?;
    Ok(())
}

pub(super) async fn put_build(conn: &mut DbConnection, build: &Build) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE builds SET status = $2, cpu_count = $3, memory_mib = $4, disk_mib = $5, envd_version = $6, \
         layers_json = $7, config_json = $8, finished_at = $9, snapshot_json = $10, failure_json = $11 WHERE id = $1",
    )
    .bind(build.id.to_string())
    .bind(build.status.as_str())
    .bind(i64::from(build.cpu_count))
    .bind(i64::from(build.memory_mib))
    .bind(i64::from(build.disk_mib))
    .bind(&build.envd_version)
    .bind(json(&build.layers))
    .bind(json(&build.config))
    .bind(build.finished_at.map(micros))
    .bind(build.snapshot.as_ref().map(json))
    .bind(build.failure.as_ref().map(json))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn builds(pool: &DbPool) -> Result<Vec<Build>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, template, status, cpu_count, memory_mib, disk_mib, envd_version, layers_json, config_json, \
         created_at, finished_at, snapshot_json, failure_json FROM builds ORDER BY created_at, id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(build).collect()
}

fn build(row: &DbRow) -> Result<Build, StoreError> {
    let id: String = row.try_get(0)?;
    let template: String = row.try_get(1)?;
    let status: String = row.try_get(2)?;
    let layers: String = row.try_get(7)?;
    let config: String = row.try_get(8)?;
    let finished_at: Option<i64> = row.try_get(10)?;
    let snapshot: Option<String> = row.try_get(11)?;
    let snapshot = snapshot.map(|text| serde_json::from_str(&text)).transpose();
    let failure: Option<String> = row.try_get(12)?;
    let failure = failure.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Build {
        id: id.parse().map_err(StoreError::damaged("builds"))?,
        template: template.parse().map_err(StoreError::damaged("builds"))?,
        status: BuildStatus::parse(&status).map_err(StoreError::damaged("builds"))?,
        cpu_count: small("builds", row.try_get(3)?)?,
        memory_mib: small("builds", row.try_get(4)?)?,
        disk_mib: small("builds", row.try_get(5)?)?,
        envd_version: row.try_get(6)?,
        layers: serde_json::from_str(&layers).map_err(StoreError::damaged("builds"))?,
        config: serde_json::from_str(&config).map_err(StoreError::damaged("builds"))?,
        snapshot: snapshot.map_err(StoreError::damaged("builds"))?,
        failure: failure.map_err(StoreError::damaged("builds"))?,
        created_at: from_micros("builds", row.try_get(9)?)?,
        finished_at: finished_at.map(|at| from_micros("builds", at)).transpose()?,
    })
}

pub(super) async fn delete_build(conn: &mut DbConnection, id: BuildId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM builds WHERE id = $1").bind(id.to_string()).execute(conn).await?;
    Ok(())
}

pub(super) async fn assign_tag(conn: &mut DbConnection, tag: &TagAssignment) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO tag_assignments (template, tag, build, created_at) VALUES ($1, $2, $3, $4)")
        .bind(tag.template.as_str())
        .bind(&tag.tag)
        .bind(tag.build.to_string())
        .bind(micros(tag.created_at))
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn remove_tag(
    conn: &mut DbConnection,
    template: &TemplateId,
    tag: &str,
) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM tag_assignments WHERE template = $1 AND tag = $2")
        .bind(template.as_str())
        .bind(tag)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

pub(super) async fn tag_assignments(pool: &DbPool) -> Result<Vec<TagAssignment>, StoreError> {
    let rows = sqlx::query(
        "SELECT template, tag, build, created_at FROM tag_assignments ORDER BY created_at, rowid",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(tag_assignment).collect()
}

fn tag_assignment(row: &DbRow) -> Result<TagAssignment, StoreError> {
    let template: String = row.try_get(0)?;
    let build: String = row.try_get(2)?;
    Ok(TagAssignment {
        template: template.parse().map_err(StoreError::damaged("tag_assignments"))?,
        tag: row.try_get(1)?,
        build: build.parse().map_err(StoreError::damaged("tag_assignments"))?,
        created_at: from_micros("tag_assignments", row.try_get(3)?)?,
    })
}
