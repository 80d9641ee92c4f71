//! Administration of teams: create, list, change, kill all their sandboxes, manage their keys. Cofferdam only, except for the keys.
//! Everything here needs the admin token.
//! A limit of zero means no limit.

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{ApiKey, Client, NewApiKey, Result};

/// A team with its limits and restrictions.
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
    /// Whether requests without a team act for it.
    pub is_default: bool,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its limits.
    pub limits: TeamLimits,
    /// Where its sandboxes may connect to.
    pub egress: TeamEgress,
    /// Where sandboxes of all teams may connect to.
    pub egress_of_all_teams: TeamEgress,
    /// Whether all its requests are refused.
    pub banned: bool,
    /// Whether it may only list and delete.
    pub blocked: bool,
    /// Why it is blocked.
    #[serde(default)]
    pub blocked_reason: Option<String>,
    /// Number of its running sandboxes.
    pub running_sandboxes: u64,
}

/// Limits of a team. In an update, `None` leaves a limit as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamLimits {
    /// Maximum number of running sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_sandboxes: Option<u32>,
    /// Maximum time limit of a sandbox, hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_hours: Option<u32>,
    /// Maximum processors of a sandbox.
    #[serde(rename = "maxVCPU", skip_serializing_if = "Option::is_none")]
    pub max_vcpu: Option<u32>,
    /// Maximum memory of a sandbox, MiB.
    #[serde(rename = "maxMemoryMB", skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u32>,
    /// Maximum writable disk of a sandbox, MiB.
    #[serde(rename = "maxDiskMB", skip_serializing_if = "Option::is_none")]
    pub max_disk_mib: Option<u32>,
    /// Maximum number of unfinished template builds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_builds: Option<u32>,
}

/// Where sandboxes of a team may connect to: networks, addresses and host names. In an update, `None` leaves a list as it is, and an empty
/// one removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamEgress {
    /// What is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<String>>,
    /// Outside of what everything is denied, if there is a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_only: Option<Vec<String>>,
}

/// Settings of a new team, or an update of a team. `None` is the server's default, or leaves a setting as it is.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamSettings {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its namespace in template names; only for a new team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// Its limits.
    pub limits: TeamLimits,
    /// Where its sandboxes may connect to.
    pub egress: TeamEgress,
    /// Whether all its requests are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub banned: Option<bool>,
    /// Whether it may only list and delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<bool>,
    /// Why it is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
}

/// How many sandboxes were killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillCount {
    /// Number of sandboxes that were killed.
    pub killed_count: u64,
    /// Number of sandboxes that could not be killed.
    pub failed_count: u64,
}

fn path(team: &str) -> String {
    format!("/admin/teams/{}", encode(team))
}

impl Client {
    /// Lists all teams with their limits.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn team_details(&self) -> Result<Vec<TeamDetails>> {
        read_json(&self.rest.call(As::Operator, Method::GET, "/admin/teams").await?)
    }

    /// Returns one team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn team(&self, team: &str) -> Result<TeamDetails> {
        read_json(&self.rest.call(As::Operator, Method::GET, &path(team)).await?)
    }

    /// Creates a team.
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

    /// Kills all running sandboxes of a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn kill_sandboxes_of(&self, team: &str) -> Result<KillCount> {
        let path = format!("{}/sandboxes/kill", path(team));
        read_json(&self.rest.call(As::Operator, Method::POST, &path).await?)
    }

    /// Lists the keys of a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn list_keys_of(&self, team: &str) -> Result<Vec<ApiKey>> {
        let path = format!("{}/api-keys", path(team));
        read_json(&self.rest.call(As::Operator, Method::GET, &path).await?)
    }

    /// Creates a key for a team.
    ///
    /// # Errors
    /// The token is refused, or there is no such team.
    pub async fn create_key_for(&self, team: &str, name: &str) -> Result<NewApiKey> {
        let body = serde_json::json!({ "name": name });
        let path = format!("{}/api-keys", path(team));
        read_json(&self.rest.call_with(As::Operator, Method::POST, &path, &body).await?)
    }

    /// Deletes a key of a team; it is refused from then on.
    ///
    /// # Errors
    /// The token is refused, or there is no such key.
    pub async fn delete_key_of(&self, team: &str, id: &str) -> Result<()> {
        let path = format!("{}/api-keys/{}", path(team), encode(id));
        check(&self.rest.call(As::Operator, Method::DELETE, &path).await?)
    }
}
