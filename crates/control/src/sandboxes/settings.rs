//! What owners do to a running sandbox: look, move its end, replace its network rules.
//! `refresh` only ever adds time; `set_timeout` may take some away.
//! Every change is made under the sandbox's lock, so that it is either before its end or refused.

use std::sync::Arc;

use ids::{SandboxId, TeamId};
use store::{NetworkConfig, Team};
use time::{Duration, OffsetDateTime};
use tokio::sync::MutexGuard;

use crate::sandboxes::create::longest_seconds;
use crate::sandboxes::egress::{clear_egress, egress_policy};
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{Live, Timing};
use crate::{Access, Control, ControlError};

/// A refresh adds at least this, seconds.
const MIN_REFRESH: i64 = 15;
/// A refresh may ask for at most this, seconds.
const MAX_REFRESH: i64 = 3600;

/// New rules for outgoing traffic; what is not given is cleared.
#[derive(Debug, Clone, Default)]
pub struct NetworkUpdate {
    /// Networks, addresses and names reachable although denied.
    pub allow_out: Option<Vec<String>>,
    /// Networks and addresses refused.
    pub deny_out: Option<Vec<String>>,
    /// Name servers reachable when a name is allowed.
    pub dns_servers: Option<Vec<String>>,
    /// Whether the internet is explicitly allowed or refused.
    pub allow_internet_access: Option<bool>,
}

impl Control {
    /// A sandbox by its id, whoever owns it: for the data plane, which checks tokens instead.
    #[must_use]
    pub fn find(&self, id: &SandboxId) -> Option<Arc<Live>> {
        self.table.get(id)
    }

    /// A team's running sandbox.
    ///
    /// # Errors
    /// [`ControlError::SandboxNotFound`], also when it is another team's.
    pub fn live(&self, team: TeamId, id: &SandboxId) -> Result<Arc<Live>, ControlError> {
        let live = self.table.get(id).filter(|live| live.team == team);
        live.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))
    }

    /// A team's sandbox, running or paused.
    pub(crate) fn entry(&self, team: TeamId, id: &SandboxId) -> Result<Entry, ControlError> {
        let entry = self.table.entry(id).filter(|entry| entry.team() == team);
        entry.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))
    }

    /// Connects to a TCP port inside a sandbox.
    ///
    /// # Errors
    /// `NotConnected` when there is no such running sandbox, `ConnectionRefused` when nothing listens there.
    pub async fn dial(&self, id: &SandboxId, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        let live = self.table.get(id).ok_or(std::io::ErrorKind::NotConnected)?;
        live.dial(port).await
    }

    /// The token envd wants, for a sandbox this server started.
    #[must_use]
    pub fn envd_token(&self, id: &SandboxId) -> String {
        self.tokens.envd(id)
    }

    /// The token a sandbox without public traffic wants.
    #[must_use]
    pub fn traffic_token(&self, id: &SandboxId) -> String {
        self.tokens.traffic(id)
    }

    /// What is known about a team's sandbox, and how to talk to it.
    ///
    /// # Errors
    /// [`ControlError::SandboxNotFound`].
    pub fn get(&self, team: TeamId, id: &SandboxId) -> Result<Access, ControlError> {
        Ok(self.access_to(self.entry(team, id)?.info()))
    }

    /// Adds time: at least 15 seconds from now, and never less than there was.
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
        let live = self.live(team.id, id)?;
        let _changing = hold(&live).await?;
        self.extend(team, &live, duration.max(MIN_REFRESH)).await
    }

    /// Ends a sandbox `timeout` seconds from now, sooner or later than it would have. Zero ends it before this returns.
    ///
    /// # Errors
    /// There is no such sandbox, or it is already older than it may get.
    pub async fn set_timeout(
        self: &Arc<Self>,
        team: &Team,
        id: &SandboxId,
        timeout: i64,
    ) -> Result<(), ControlError> {
        let live = self.live(team.id, id)?;
        let changing = hold(&live).await?;
        if timeout <= 0 {
            drop(changing);
            return self.run_out(&live).await;
        }
        let now = OffsetDateTime::now_utc();
        let oldest = live.started_at + Duration::seconds(longest_seconds(team));
        if oldest <= now {
            return Err(ControlError::Invalid("Max instance length exceeded".to_owned()));
        }
        let timeout = timeout.min(longest_seconds(team));
        self.move_end(&live, (now + Duration::seconds(timeout)).min(oldest)).await
    }

    /// Replaces the rules for outgoing traffic. Open connections stay, new ones follow the new rules.
    ///
    /// # Errors
    /// There is no such sandbox, or an entry is malformed.
    pub async fn update_network(
        &self,
        team: &Team,
        id: &SandboxId,
        update: NetworkUpdate,
    ) -> Result<(), ControlError> {
        let live = self.live(team.id, id)?;
        let _changing = hold(&live).await?;
        let mut details = live.details();
        let mut network = details.network.take().unwrap_or_default();
        clear_egress(&mut network);
        network.allow_out = update.allow_out;
        network.deny_out = update.deny_out;
        network.dns_servers = update.dns_servers;
        let policy = egress_policy(Some(&network), update.allow_internet_access)?;
        details.network = (network != NetworkConfig::default()).then_some(network);
        details.allow_internet_access = update.allow_internet_access;
        self.store.set_sandbox_details(id, &details).await?;
        live.engine.set_egress(policy);
        live.set_details(details);
        self.record_network(&live).await;
        Ok(())
    }

    pub(crate) async fn extend(&self, team: &Team, live: &Live, seconds: i64) -> Result<(), ControlError> {
        let oldest = live.started_at + Duration::seconds(longest_seconds(team));
        let wanted = (OffsetDateTime::now_utc() + Duration::seconds(seconds)).min(oldest);
        if wanted <= live.end_at() {
            return Ok(());
        }
        self.move_end(live, wanted).await
    }

    /// Only with the sandbox's lock held: memory and store change in the same order.
    async fn move_end(&self, live: &Live, end_at: OffsetDateTime) -> Result<(), ControlError> {
        let timing = Timing::until(end_at);
        self.store.set_sandbox_end(&live.id, timing.end_at).await?;
        live.timing.send_replace(timing);
        self.record_new_end(live).await;
        Ok(())
    }
}

/// The sandbox's lock, unless it ended while we waited for it.
async fn hold(live: &Live) -> Result<MutexGuard<'_, ()>, ControlError> {
    let held = live.transition.lock().await;
    if live.has_ended() { Err(ControlError::SandboxNotFound(live.id.clone())) } else { Ok(held) }
}
