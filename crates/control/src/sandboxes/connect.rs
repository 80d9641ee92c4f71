//! Connects to sandboxes, which resumes them if they are paused: by a call of their owner (`connect`, `resume`) or by traffic to
//! one of their ports (`wake`).

use std::sync::Arc;

use ids::SandboxId;
use store::{Standing, Team};

use super::{Access, AnySandbox, PausedSandbox, RunningSandbox, begin_transition};
use super::{check_max_timeout, max_timeout};
use crate::{Control, ControlError};

/// A paused sandbox that traffic to its ports resumes.
#[derive(Debug, Clone)]
pub struct WakeableSandbox(Arc<PausedSandbox>);

impl WakeableSandbox {
    /// Returns whether its ports can be reached without the traffic token.
    #[must_use]
    pub fn allows_public_traffic(&self) -> bool {
        let network = self.0.record.details.network.as_ref();
        network.and_then(|network| network.allow_public_traffic).unwrap_or(true)
    }
}

impl Control {
    /// Returns a team's sandbox, which then lives at least `timeout` seconds from now; resumes it first if it is paused, with its
    /// memory unless `memory` is false. Also returns whether it was resumed.
    ///
    /// # Errors
    /// There is no such sandbox, the timeout is longer than the team's limit, or the resume failed and the sandbox is still
    /// paused.
    pub async fn connect(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        timeout: i64,
        memory: bool,
    ) -> Result<(Access, bool), ControlError> {
        if timeout < 0 {
            return Err(ControlError::Invalid("Timeout must not be negative".to_owned()));
        }
        check_max_timeout(team, timeout)?;
        loop {
            match self.any_sandbox(team.id, id)? {
                AnySandbox::Running(running) => {
                    let transition = begin_transition(&running.transition).await;
                    if running.was_succeeded() {
                        continue;
                    }
                    if running.has_ended() {
                        return Err(ControlError::SandboxNotFound(id.clone()));
                    }
                    self.extend(team, &running, timeout).await?;
                    drop(transition);
                    return Ok((self.access_to(running.info()), false));
                }
                AnySandbox::Paused(paused) => {
                    if let Some(running) = self.resume_paused(team, paused, timeout, memory).await? {
                        return Ok((self.access_to(running.info()), true));
                    }
                }
            }
        }
    }

    /// Resumes a team's paused sandbox.
    ///
    /// # Errors
    /// As [`Control::connect`]; `Conflict` when the sandbox is running.
    pub async fn resume(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        timeout: i64,
        memory: bool,
    ) -> Result<Access, ControlError> {
        if timeout <= 0 {
            return Err(ControlError::Invalid("Timeout must be greater than 0".to_owned()));
        }
        check_max_timeout(team, timeout)?;
        loop {
            match self.any_sandbox(team.id, id)? {
                AnySandbox::Running(_) => {
                    return Err(ControlError::Conflict(format!("Sandbox {id} is already running")));
                }
                AnySandbox::Paused(paused) => {
                    if let Some(running) = self.resume_paused(team, paused, timeout, memory).await? {
                        return Ok(self.access_to(running.info()));
                    }
                }
            }
        }
    }

    /// Returns the paused sandbox with this id if traffic to its ports resumes it.
    #[must_use]
    pub fn find_wakeable(&self, id: &SandboxId) -> Option<WakeableSandbox> {
        let paused = self.registry.paused(id)?;
        let keeps_memory = paused.record.pause.as_ref().is_none_or(|pause| pause.memory);
        (paused.lifecycle().auto_resume && keeps_memory).then_some(WakeableSandbox(paused))
    }

    /// Resumes a sandbox because of traffic to one of its ports.
    ///
    /// # Errors
    /// The team is blocked, or the resume failed and the sandbox is still paused.
    pub async fn wake(
        self: &Arc<Self>,
        wakeable: WakeableSandbox,
    ) -> Result<Arc<RunningSandbox>, ControlError> {
        let WakeableSandbox(mut paused) = wakeable;
        let id = paused.record.id.clone();
        let team = self.team(paused.record.team).ok_or(ControlError::TeamNotFound)?;
        check_good_standing(&team)?;
        let timeout = paused.lifecycle().resume_timeout.min(max_timeout(&team));
        loop {
            if let Some(running) = self.resume_paused(&team, paused, timeout, true).await? {
                return Ok(running);
            }
            match self.any_sandbox(team.id, &id)? {
                AnySandbox::Running(running) => return Ok(running),
                AnySandbox::Paused(other) => paused = other,
            }
        }
    }
}

/// Checks that traffic may resume a team's sandboxes: not while the team is blocked or banned.
fn check_good_standing(team: &Team) -> Result<(), ControlError> {
    match team.standing {
        Standing::Good => Ok(()),
        Standing::Blocked(_) => Err(ControlError::Forbidden("team is blocked")),
        Standing::Banned => Err(ControlError::Forbidden("team is banned")),
    }
}
