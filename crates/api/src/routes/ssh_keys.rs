//! Handlers for the public keys by which a team's SSH clients are known. Ours, not E2B's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use store::SshKey;
use time::OffsetDateTime;

use crate::auth::Caller;
use crate::body::Json as Body;
use crate::paths::Segment;
use crate::route_table::RouteTable;
use crate::{Api, ApiError};

pub(crate) fn routes() -> RouteTable {
    RouteTable::new()
        .get("/cofferdam/v1/ssh-keys", list)
        .post("/cofferdam/v1/ssh-keys", add)
        .delete("/cofferdam/v1/ssh-keys/{sshKeyID}", delete)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSshKey {
    name: Option<String>,
    public_key: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SshKeyView {
    #[serde(rename = "sshKeyID")]
    id: String,
    name: String,
    fingerprint: String,
    public_key: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<&SshKey> for SshKeyView {
    fn from(key: &SshKey) -> Self {
        Self {
            id: key.id.to_string(),
            name: key.name.clone(),
            fingerprint: key.fingerprint.clone(),
            public_key: key.public_key.clone(),
            created_at: key.created_at,
        }
    }
}

async fn add(
    State(api): State<Api>,
    Caller(team): Caller,
    Body(body): Body<NewSshKey>,
) -> Result<(StatusCode, Json<SshKeyView>), ApiError> {
    let key = api.control.ssh_keys().add(team.id, body.name.as_deref(), &body.public_key).await?;
    Ok((StatusCode::CREATED, Json(SshKeyView::from(&*key))))
}

async fn list(State(api): State<Api>, Caller(team): Caller) -> Json<Vec<SshKeyView>> {
    Json(api.control.ssh_keys().of_team(team.id).iter().map(|key| SshKeyView::from(&**key)).collect())
}

async fn delete(
    State(api): State<Api>,
    Caller(team): Caller,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.control.ssh_keys().delete(team.id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
