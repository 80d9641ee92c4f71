//! The operator's calls about teams: create, change, kill all sandboxes, count. A change applies from the next request on; running
//! sandboxes are not affected, except that their next connections follow the lists of destinations. Slugs are used in URLs and template names: lower-case letters, digits, dashes and underscores.

use std::collections::BTreeMap;
use std::sync::Arc;

use ids::TeamId;
use store::{Standing, StoreError, Team, TeamEgress, TeamLimits, truncate_to_micros};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::sandboxes::EndReason;
use crate::team_egress::EgressChange;
use crate::{Control, ControlError};

/// Maximum number of sandboxes that are killed at once when all of a team's are.
const MAX_PARALLEL_KILLS: usize = 10;
/// Maximum length of a name, bytes.
const MAX_NAME: usize = 255;

/// New limits; none keeps the old one, zero removes it.
#[derive(Debug, Clone, Copy, Default)]
pub struct LimitsChange {
    /// Running sandboxes at once.
    pub concurrent_sandboxes: Option<u32>,
    /// Maximum time of one sandbox, hours.
    pub max_length_hours: Option<u32>,
    /// Processors of one sandbox.
    pub max_vcpu: Option<u32>,
    /// Memory of one sandbox, MiB.
    pub max_memory_mib: Option<u32>,
    /// Writable disk of one sandbox, MiB.
    pub max_disk_mib: Option<u32>,
    /// Template builds at once.
    pub concurrent_builds: Option<u32>,
}

impl LimitsChange {
    /// Returns the limits after the change.
    #[must_use]
    pub fn apply(self, limits: TeamLimits) -> TeamLimits {
        TeamLimits {
            concurrent_sandboxes: self.concurrent_sandboxes.unwrap_or(limits.concurrent_sandboxes),
            max_length_hours: self.max_length_hours.unwrap_or(limits.max_length_hours),
            max_vcpu: self.max_vcpu.unwrap_or(limits.max_vcpu),
            max_memory_mib: self.max_memory_mib.unwrap_or(limits.max_memory_mib),
            max_disk_mib: self.max_disk_mib.unwrap_or(limits.max_disk_mib),
            concurrent_builds: self.concurrent_builds.unwrap_or(limits.concurrent_builds),
        }
    }
}

/// A team to create.
#[derive(Debug, Clone)]
pub struct NewTeam {
    /// Its name.
    pub name: String,
    /// Its namespace in template names; by default derived from the name.
    pub slug: Option<String>,
    /// Limits that differ from the defaults.
    pub limits: LimitsChange,
    /// Where its sandboxes may connect to.
    pub egress: EgressChange,
}

/// New values of a team; none keeps the old one.
#[derive(Debug, Clone, Default)]
pub struct TeamChange {
    /// Its name.
    pub name: Option<String>,
    /// Its limits.
    pub limits: LimitsChange,
    /// Where its sandboxes may connect to, also those that run.
    pub egress: EgressChange,
    /// Whether it is blocked or banned.
    pub standing: Option<Standing>,
}

/// Result of killing all sandboxes of a team.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KillCount {
    /// Number of killed sandboxes.
    pub killed: usize,
    /// Number of sandboxes that could not be killed cleanly.
    pub failed: usize,
}

impl Control {
    /// Creates a team.
    ///
    /// # Errors
    /// The name or slug is invalid, the slug is taken, or the store failed.
    pub async fn create_team(&self, new: NewTeam) -> Result<Arc<Team>, ControlError> {
        let slug = new.slug.unwrap_or_else(|| slug_of(&new.name));
        if !is_slug(&slug) {
            return Err(ControlError::Invalid(
                "slug must be made of lower-case letters, digits, '-' and '_', at most 64".to_owned(),
            ));
        }
        let team = Team {
            id: TeamId::generate(),
            name: checked_name(new.name)?,
            slug,
            limits: new.limits.apply(self.config.default_limits),
            egress: new.egress.apply(TeamEgress::default())?,
            standing: Standing::Good,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        };
        tracing::info!(team_id = %team.id, slug = team.slug, "team created");
        self.put_team(team).await
    }

    /// Changes a team.
    ///
    /// # Errors
    /// There is no such team, a value is invalid, or the store failed.
    pub async fn change_team(&self, id: TeamId, change: TeamChange) -> Result<Arc<Team>, ControlError> {
        let _changing = self.changing_teams.lock().await;
        let old = Team::clone(&*self.team(id).ok_or(ControlError::TeamNotFound)?);
        let team = Team {
            name: change.name.map(checked_name).transpose()?.unwrap_or(old.name),
            limits: change.limits.apply(old.limits),
            egress: change.egress.apply(old.egress)?,
            standing: change.standing.unwrap_or(old.standing),
            ..old
        };
        tracing::info!(team_id = %id, limits = ?team.limits, standing = ?team.standing, egress = ?team.egress, "team changed");
        self.put_team(team).await
    }

    async fn put_team(&self, team: Team) -> Result<Arc<Team>, ControlError> {
        match self.store.put_team(&team).await {
            Ok(()) => Ok(self.accounts.put(team)),
            Err(StoreError::Conflict(what)) => Err(ControlError::Conflict(format!("{what} exists already"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns where sandboxes of all teams may connect to.
    #[must_use]
    pub fn egress_of_all(&self) -> TeamEgress {
        let policy = self.config.operator_policies.for_all();
        TeamEgress { deny: policy.denied(), allow_only: policy.allowed_only() }
    }

    /// Kills all running sandboxes of a team, some at a time.
    ///
    /// # Errors
    /// There is no such team.
    pub async fn kill_all(self: &Arc<Self>, team: TeamId) -> Result<KillCount, ControlError> {
        self.team(team).ok_or(ControlError::TeamNotFound)?;
        let mut count = KillCount::default();
        let mut count_result = |ended: Option<Result<bool, _>>| match ended {
            Some(Ok(true)) => count.killed += 1,
            Some(_) => count.failed += 1,
            None => {}
        };
        let mut ends: JoinSet<bool> = JoinSet::new();
        for running in self.registry.running_of(team) {
            if ends.len() >= MAX_PARALLEL_KILLS {
                count_result(ends.join_next().await);
            }
            let control = Arc::clone(self);
            ends.spawn(async move { control.end(&running, EndReason::Admin).await.is_ok() });
        }
        while let Some(ended) = ends.join_next().await {
            count_result(Some(ended));
        }
        tracing::info!(team_id = %team, killed = count.killed, failed = count.failed, "killed all sandboxes of a team");
        Ok(count)
    }

    /// Returns the number of running sandboxes of each team that has any.
    #[must_use]
    pub fn running_by_team(&self) -> BTreeMap<TeamId, usize> {
        let counts = self.teams().into_iter().map(|team| (team.id, self.registry.running_of(team.id).len()));
        counts.filter(|(_, running)| *running > 0).collect()
    }
}

fn checked_name(name: String) -> Result<String, ControlError> {
    if name.trim().is_empty() || name.len() > MAX_NAME {
        return Err(ControlError::Invalid(format!("name must be from 1 to {MAX_NAME} bytes")));
    }
    Ok(name)
}

fn is_slug(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

fn slug_of(name: &str) -> String {
    let parts = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_come_from_names() {
        assert_eq!(slug_of("Data & Science  Team"), "data-science-team");
        assert_eq!(slug_of("日本"), "");
        assert!(is_slug("a-b_1"));
        for bad in ["", "A", "a b", "a/b", &"x".repeat(65)] {
            assert!(!is_slug(bad), "{bad:?}");
        }
    }
}
