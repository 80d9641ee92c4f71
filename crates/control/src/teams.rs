//! What the operator does with teams: make, change, stop; and what it asks of all of them at once.
//! A change holds from the next request on; running sandboxes are left alone unless they are ended by name of the team.
//! Slugs are names in URLs and templates: lower-case letters, digits, dashes and underscores.

use std::collections::BTreeMap;
use std::sync::Arc;

use ids::TeamId;
use store::{Standing, StoreError, Team, TeamLimits, truncate_to_micros};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::sandboxes::running::EndReason;
use crate::{Control, ControlError};

/// Sandboxes ended at the same time when a whole team's are.
const ENDS_AT_ONCE: usize = 10;
const MAX_NAME: usize = 255;

/// New limits; what is not given stays. Zero is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct LimitsChange {
    /// Running sandboxes.
    pub concurrent_sandboxes: Option<u32>,
    /// Longest life of one sandbox, hours.
    pub max_length_hours: Option<u32>,
    /// Processors of one sandbox.
    pub max_vcpu: Option<u32>,
    /// Memory of one sandbox, MiB.
    pub max_memory_mib: Option<u32>,
    /// Writable disk of one sandbox, MiB.
    pub max_disk_mib: Option<u32>,
    /// Template builds under way.
    pub concurrent_builds: Option<u32>,
}

impl LimitsChange {
    /// The limits after the change.
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

/// A team to be.
#[derive(Debug, Clone)]
pub struct NewTeam {
    /// Its name for people.
    pub name: String,
    /// Its namespace in template names; made from the name when not given.
    pub slug: Option<String>,
    /// Where it differs from the operator's defaults.
    pub limits: LimitsChange,
}

/// New values; what is not given stays.
#[derive(Debug, Clone, Default)]
pub struct TeamChange {
    /// Its name for people.
    pub name: Option<String>,
    /// Its limits.
    pub limits: LimitsChange,
    /// Whether it may do things.
    pub standing: Option<Standing>,
}

/// How many sandboxes were ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KillCount {
    /// Ended.
    pub killed: usize,
    /// Not wholly ended.
    pub failed: usize,
}

impl Control {
    /// Makes a team.
    ///
    /// # Errors
    /// Name or slug are not acceptable, the slug is taken, or the store failed.
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
            standing: Standing::Good,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        };
        tracing::info!(team_id = %team.id, slug = team.slug, "team created");
        self.keep_team(team).await
    }

    /// Changes a team.
    ///
    /// # Errors
    /// There is no such team, a value is not acceptable, or the store failed.
    pub async fn change_team(&self, id: TeamId, change: TeamChange) -> Result<Arc<Team>, ControlError> {
        let _changing = self.registering.lock().await;
        let old = Team::clone(&*self.team(id).ok_or(ControlError::TeamNotFound)?);
        let team = Team {
            name: change.name.map(checked_name).transpose()?.unwrap_or(old.name),
            limits: change.limits.apply(old.limits),
            standing: change.standing.unwrap_or(old.standing),
            ..old
        };
        tracing::info!(team_id = %id, limits = ?team.limits, standing = ?team.standing, "team changed");
        self.keep_team(team).await
    }

    async fn keep_team(&self, team: Team) -> Result<Arc<Team>, ControlError> {
        match self.store.put_team(&team).await {
            Ok(()) => Ok(self.accounts.put(team)),
            Err(StoreError::Conflict(what)) => Err(ControlError::Conflict(format!("{what} exists already"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends all running sandboxes of a team, some at a time.
    ///
    /// # Errors
    /// There is no such team.
    pub async fn kill_all(self: &Arc<Self>, team: TeamId) -> Result<KillCount, ControlError> {
        self.team(team).ok_or(ControlError::TeamNotFound)?;
        let mut count = KillCount::default();
        let mut note = |ended: Option<Result<bool, _>>| match ended {
            Some(Ok(true)) => count.killed += 1,
            Some(_) => count.failed += 1,
            None => {}
        };
        let mut ends: JoinSet<bool> = JoinSet::new();
        for live in self.table.running_of(team) {
            if ends.len() >= ENDS_AT_ONCE {
                note(ends.join_next().await);
            }
            let control = Arc::clone(self);
            ends.spawn(async move { control.end(&live, EndReason::Admin).await.is_ok() });
        }
        while let Some(ended) = ends.join_next().await {
            note(Some(ended));
        }
        tracing::info!(team_id = %team, killed = count.killed, failed = count.failed, "a team's sandboxes were ended");
        Ok(count)
    }

    /// How many sandboxes each team is running; teams without any are left out.
    #[must_use]
    pub fn running_by_team(&self) -> BTreeMap<TeamId, usize> {
        let counts = self.teams().into_iter().map(|team| (team.id, self.table.running_of(team.id).len()));
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
