//! Settings of a running sandbox that its owner can change: its timeout and its network rules. `refresh` only adds time,
//! `set_timeout` may also take some away. Changes are made under the sandbox's lock: they happen before its end or are refused.

use std::sync::Arc;

use egress_rules::{NetworkRules, ProxyRequest};
use ids::SandboxId;
use store::{NetworkConfig, Team};
use time::{Duration, OffsetDateTime};
use tokio::sync::MutexGuard;

use super::egress::{clear_egress, egress_policy};
use super::running::FailedPauses;
use super::{RunningSandbox, TimeLimit, max_timeout};
use crate::{Control, ControlError};

/// Minimum time that a refresh adds, seconds.
const MIN_REFRESH: i64 = 15;
/// Maximum time that a refresh may ask for, seconds.
const MAX_REFRESH: i64 = 3600;

/// New egress rules; a field that is not given is cleared.
#[derive(Debug, Clone, Default)]
pub struct NetworkUpdate {
    /// Networks, addresses and names that are reachable although denied.
    pub allow_out: Option<Vec<String>>,
    /// Networks and addresses that are denied.
    pub deny_out: Option<Vec<String>>,
    /// Name servers that are reachable when a name is allowed.
    pub dns_servers: Option<Vec<String>>,
    /// Headers that the gateway sets on requests, by host.
    pub rules: Option<NetworkRules>,
    /// The proxy that outgoing connections go through.
    pub proxy: Option<ProxyRequest>,
    /// Whether internet access is explicitly allowed or denied.
    pub allow_internet_access: Option<bool>,
}

impl Control {
    /// Adds time: the sandbox ends at least 15 seconds from now, and never earlier than before.
    ///
    /// # Errors
    /// There is no such sandbox, or the duration is out of range.
    pub async fn refresh(
        &self,
        team: &Team,
        id: &SandboxId,
        duration: Option<i64>,
    ) -> Result<(), ControlError> {
        let duration = duration.unwrap_or(MIN_REFRESH);
        if !(0..=MAX_REFRESH).contains(&duration) {
            return Err(ControlError::Invalid(format!("duration must be from 0 to {MAX_REFRESH} seconds")));
        }
        let running = self.running_sandbox(team.id, id)?;
        let _transition = lock_running(&running).await?;
        self.extend(team, &running, duration.max(MIN_REFRESH)).await
    }

    /// Sets the end of a sandbox to `timeout` seconds from now, sooner or later than before. Zero ends it before this returns.
    ///
    /// # Errors
    /// There is no such sandbox, or it is older than the team's maximum already.
    pub async fn set_timeout(
        self: &Arc<Self>,
        team: &Team,
        id: &SandboxId,
        timeout: i64,
    ) -> Result<(), ControlError> {
        let running = self.running_sandbox(team.id, id)?;
        let transition = lock_running(&running).await?;
        if timeout <= 0 {
            drop(transition);
            return self.end_on_timeout(&running).await;
        }
        let now = OffsetDateTime::now_utc();
        let latest = running.started_at + Duration::seconds(max_timeout(team));
        if latest <= now {
            return Err(ControlError::Invalid("Max instance length exceeded".to_owned()));
        }
        let timeout = timeout.min(max_timeout(team));
        self.move_end(&running, (now + Duration::seconds(timeout)).min(latest)).await
    }

    /// Replaces the egress rules. Open connections stay; new ones follow the new rules.
    ///
    /// # Errors
    /// There is no such sandbox, or a rule is malformed.
    pub async fn update_network(
        &self,
        team: &Team,
        id: &SandboxId,
        update: NetworkUpdate,
    ) -> Result<(), ControlError> {
        let running = self.running_sandbox(team.id, id)?;
        // Resolves a name, so not under the lock.
        let proxy = self.accept_proxy(team.id, update.proxy.as_ref()).await?;
        let _transition = lock_running(&running).await?;
        let mut details = running.details();
        let mut network = details.network.take().unwrap_or_default();
        clear_egress(&mut network);
        network.allow_out = update.allow_out;
        network.deny_out = update.deny_out;
        network.dns_servers = update.dns_servers;
        network.rules = update.rules;
        network.egress_proxy = proxy;
        let policy = egress_policy(team.id, Some(&network), update.allow_internet_access)?;
        details.network = (network != NetworkConfig::default()).then_some(network);
        details.allow_internet_access = update.allow_internet_access;
        self.store.set_sandbox_details(id, &details).await?;
        running.engine.set_egress(policy);
        running.set_details(details.clone());
        self.events.record_network(&*running, &details).await;
        Ok(())
    }

    /// Moves the end to `seconds` from now if that is later, within the team's maximum. The caller holds the sandbox's lock.
    pub(super) async fn extend(
        &self,
        team: &Team,
        running: &RunningSandbox,
        seconds: i64,
    ) -> Result<(), ControlError> {
        let latest = running.started_at + Duration::seconds(max_timeout(team));
        let wanted = (OffsetDateTime::now_utc() + Duration::seconds(seconds)).min(latest);
        if wanted <= running.end_at() {
            return Ok(());
        }
        self.move_end(running, wanted).await
    }

    /// Moves the end. The caller holds the sandbox's lock, so that memory and store change in the same order.
    async fn move_end(&self, running: &RunningSandbox, end_at: OffsetDateTime) -> Result<(), ControlError> {
        let time_limit = TimeLimit::until(end_at);
        self.store.set_sandbox_end(&running.id, time_limit.end_at).await?;
        running.time_limit.send_replace(time_limit);
        *running.failed_pauses.lock() = FailedPauses::default();
        self.events.record_new_end(running, time_limit.end_at).await;
        Ok(())
    }
}

/// Waits for the sandbox's lock.
///
/// # Errors
/// The sandbox ended meanwhile.
async fn lock_running(running: &RunningSandbox) -> Result<MutexGuard<'_, ()>, ControlError> {
    let transition = running.transition.lock().await;
    if running.has_ended() {
        return Err(ControlError::SandboxNotFound(running.id.clone()));
    }
    Ok(transition)
}
