//! Teams, for the operator: make, list, change, and end all they run. Cofferdam only, but for the keys.
//! Everything here needs the admin token.
//! Limits of zero mean none.

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{ApiKey, Client, NewApiKey, Result};

/// A team as the operator sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamDetails {
    /// Its id.
    #[serde(rename = "teamID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its namespace in template names.
    pub slug: String,
    /// Whether requests that name no team act for it.
    pub is_default: bool,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// What it may use.
    pub limits: TeamLimits,
    /// Whether it may do nothing.
    pub banned: bool,
    /// Whether it may only look and delete.
    pub blocked: bool,
    /// Why it is blocked.
    #[serde(default)]
    pub blocked_reason: Option<String>,
    /// Its running sandboxes.
    pub running_sandboxes: u64,
}

/// What a team may use. In a change, what is not given stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamLimits {
    /// Running sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_sandboxes: Option<u32>,
    /// Longest life of one sandbox, hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_hours: Option<u32>,
    /// Processors of one sandbox.
    #[serde(rename = "maxVCPU", skip_serializing_if = "Option::is_none")]
    pub max_vcpu: Option<u32>,
    /// Memory of one sandbox, MiB.
    #[serde(rename = "maxMemoryMB", skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u32>,
    /// Writable disk of one sandbox, MiB.
    #[serde(rename = "maxDiskMB", skip_serializing_if = "Option::is_none")]
    pub max_disk_mib: Option<u32>,
    /// Template builds under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_builds: Option<u32>,
}

/// A change of a team, or a team to be. What is not given stays, or is the server's default.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamSettings {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its namespace in template names; only for one to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// Its limits.
    pub limits: TeamLimits,
    /// Whether it may do nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub banned: Option<bool>,
    /// Whether it may only look and delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<bool>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
}

/// How many sandboxes were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillCount {
    /// Ended.
    pub killed_count: u64,
    /// Not wholly ended.
    pub failed_count: u64,
}

fn path(team: &str) -> String {
    format!("/admin/teams/{}", encode(team))
}

impl Client {
    /// All teams with their limits.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn team_details(&self) -> Result<Vec<TeamDetails>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/admin/teams").await?)
    }

    /// Makes a team.
    ///
    /// # Errors
    /// The token is refused, or a value is not accepted.
    pub async fn create_team(&self, settings: &TeamSettings) -> Result<TeamDetails> {
        read_json(&self.rest.call_with(As::Operator, Method::POST, "/admin/teams", settings).await?)
    }

    /// Changes a team.
    ///
    /// # Errors
    /// The token is refused, there is no such team, or a value is not accepted.
    pub async fn update_team(&self, team: &str, settings: &TeamSettings) -> Result<TeamDetails> {
        read_json(&self.rest.call_with(As::Operator, Method::PATCH, &path(team), settings).await?)
    }

    /// Ends all running sandboxes of a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn kill_sandboxes_of(&self, team: &str) -> Result<KillCount> {
        let path = format!("{}/sandboxes/kill", path(team));
        read_json(&self.rest.call(As::Operator, Method::POST, &path).await?)
    }

    /// Keys of a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn list_keys_of(&self, team: &str) -> Result<Vec<ApiKey>> {
        let path = format!("{}/api-keys", path(team));
        read_json(&self.rest.call(As::Operator, Method::GET, &path).await?)
    }

    /// Makes a key for a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn create_key_for(&self, team: &str, name: &str) -> Result<NewApiKey> {
        let body = serde_json::json!({ "name": name });
        let path = format!("{}/api-keys", path(team));
        read_json(&self.rest.call_with(As::Operator, Method::POST, &path, &body).await?)
    }

    /// Deletes a key of a team; who uses it is refused from then on.
    ///
    /// # Errors
    /// The token is refused, or there is no such key.
    pub async fn delete_key_of(&self, team: &str, id: &str) -> Result<()> {
        let path = format!("{}/api-keys/{}", path(team), encode(id));
        check(&self.rest.call(As::Operator, Method::DELETE, &path).await?)
    }
}
