//! Coming back from a pause: by `connect`, by `resume`, or because traffic came.
//! Frozen processes that are still there are thawed; otherwise the captured state is restored; a failure leaves it paused.
//! The captured state is only removed once the store, on its disk, knows that the sandbox runs.

use std::sync::Arc;
use std::time::Duration;

use engine::{RestoreMode, Sandbox as EngineSandbox};
use ids::{ExecutionId, SandboxId};
use serde_json::Map;
use store::{EventKind, Pause, Sandbox, SandboxState, Team, truncate_to_micros};
use telemetry::ResumePath;
use time::OffsetDateTime;
use tracing::field::Empty;
use tracing::{Instrument, Span, instrument};

use super::{Paused, boot_again, restore_mode_of};
use crate::resources::check_good_standing;
use crate::sandboxes::create::{check_longest, longest_seconds};
use crate::sandboxes::launch::discard;
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::{Live, Timing};
use crate::{Access, Control, ControlError, LogLevel};

/// How long thawed processes may take to answer before they are given up for the captured state.
const THAW_TIMEOUT: Duration = Duration::from_secs(5);

/// A paused sandbox that traffic may wake.
#[derive(Debug, Clone)]
pub struct Waking(Arc<Paused>);

impl Waking {
    /// Whether its ports are open without the traffic token.
    #[must_use]
    pub fn allows_public_traffic(&self) -> bool {
        let network = self.0.record.details.network.as_ref();
        network.and_then(|network| network.allow_public_traffic).unwrap_or(true)
    }
}

impl Control {
    /// Hands out a team's sandbox that shall live at least `timeout` seconds from now, resuming it if it is paused:
    /// with its memory, or without if `memory` is false. Also answers whether it was resumed.
    ///
    /// # Errors
    /// There is no such sandbox, the time is longer than the team may have, or it could not be resumed and is paused.
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
        check_longest(team, timeout)?;
        loop {
            match self.entry(team.id, id)? {
                Entry::Running(live) => {
                    let changing = Self::turn(&live.transition).await;
                    if live.was_succeeded() {
                        continue;
                    }
                    if live.has_ended() {
                        return Err(ControlError::SandboxNotFound(id.clone()));
                    }
                    self.extend(team, &live, timeout).await?;
                    drop(changing);
                    return Ok((self.access(&live), false));
                }
                Entry::Paused(paused) => {
                    if let Some(live) = self.resume_paused(team, paused, timeout, memory).await? {
                        return Ok((self.access(&live), true));
                    }
                }
            }
        }
    }

    /// Resumes a team's paused sandbox.
    ///
    /// # Errors
    /// As [`Control::connect`]; `Conflict` when it runs.
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
        check_longest(team, timeout)?;
        loop {
            match self.entry(team.id, id)? {
                Entry::Running(_) => {
                    return Err(ControlError::Conflict(format!("Sandbox {id} is already running")));
                }
                Entry::Paused(paused) => {
                    if let Some(live) = self.resume_paused(team, paused, timeout, memory).await? {
                        return Ok(self.access(&live));
                    }
                }
            }
        }
    }

    /// A paused sandbox that traffic would wake, if this is one.
    #[must_use]
    pub fn sleeping(&self, id: &SandboxId) -> Option<Waking> {
        let paused = self.table.paused(id)?;
        let keeps_memory = paused.record.pause.as_ref().is_none_or(|pause| pause.memory);
        (paused.lifecycle().auto_resume && keeps_memory).then_some(Waking(paused))
    }

    /// Wakes it for traffic that may reach it.
    ///
    /// # Errors
    /// It could not be resumed and is paused.
    pub async fn wake(self: &Arc<Self>, waking: Waking) -> Result<Arc<Live>, ControlError> {
        let Waking(mut paused) = waking;
        let id = paused.record.id.clone();
        let team = self.team(paused.record.team).ok_or(ControlError::TeamNotFound)?;
        check_good_standing(&team)?;
        let timeout = paused.lifecycle().resume_timeout.min(longest_seconds(&team));
        loop {
            if let Some(live) = self.resume_paused(&team, paused, timeout, true).await? {
                return Ok(live);
            }
            match self.entry(team.id, &id)? {
                Entry::Running(live) => return Ok(live),
                Entry::Paused(other) => paused = other,
            }
        }
    }

    /// Resumes it in a task of its own. None when it changed before its turn came: look again.
    async fn resume_paused(
        self: &Arc<Self>,
        team: &Arc<Team>,
        paused: Arc<Paused>,
        timeout: i64,
        memory: bool,
    ) -> Result<Option<Arc<Live>>, ControlError> {
        let (control, team) = (Arc::clone(self), Arc::clone(team));
        let task = self.tasks.spawn(
            async move {
                let _changing = Self::turn(&paused.transition).await;
                let Some(pause) = paused.record.pause.as_ref().filter(|_| control.table.holds(&paused))
                else {
                    return Ok(None);
                };
                control.resume_held(&team, &paused, pause, timeout, memory).await.map(Some)
            }
            .in_current_span(),
        );
        task.await.unwrap_or(Err(ControlError::Engine("resumed")))
    }

    #[instrument(
        name = "resume", skip_all,
        fields(sandbox_id = %paused.record.id, team_id = %team.id, snapshot_id = %pause.snapshot, was_frozen = Empty)
    )]
    async fn resume_held(
        self: &Arc<Self>,
        team: &Team,
        paused: &Arc<Paused>,
        pause: &Pause,
        timeout: i64,
        memory: bool,
    ) -> Result<Arc<Live>, ControlError> {
        let began = std::time::Instant::now();
        let id = &paused.record.id;
        let restore_mode = restore_mode_of(pause, memory);
        let reservation = self.places.reserve(team.id, team.limits.concurrent_sandboxes)?;
        let turn = self.starts.join()?.turn().await?;
        let mut timer = telemetry::resume_timer();
        let thawed = self.thaw(paused, restore_mode).await?;
        let was_hot = thawed.is_some();
        Span::current().record("was_frozen", was_hot);
        if was_hot {
            timer.set_path(ResumePath::Frozen);
        }
        let sandbox = match thawed {
            Some(sandbox) => sandbox,
            None => self.boot(&boot_again(&paused.record, id, pause, restore_mode)?).await.inspect_err(
                |error| {
                    tracing::warn!(sandbox_id = %id, %error, "a resume failed; the sandbox stays paused");
                },
            )?,
        };
        drop(turn);
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let record = Sandbox {
            execution: ExecutionId::generate(),
            state: SandboxState::Running,
            started_at: now,
            end_at: now + time::Duration::seconds(timeout),
            pause: None,
            ..paused.record.clone()
        };
        // The captured state is there until the disk has this, too: a power cut before leaves a paused sandbox, not a lost one.
        match self.store.put_sandbox_quickly(&record).await {
            Ok(true) => {}
            Ok(false) => {
                discard(&*sandbox).await;
                return Err(ControlError::SandboxNotFound(id.clone()));
            }
            Err(error) => {
                discard(&*sandbox).await;
                return Err(error.into());
            }
        }
        let timing = Timing::until(record.end_at);
        let live = Live::new(record, sandbox, timing, reservation, Arc::clone(&paused.transition));
        self.log(
            &live,
            LogLevel::Info,
            "sandbox resumed",
            &[("memory", (restore_mode == RestoreMode::Memory).to_string())],
        );
        let particulars =
            Map::from_iter([("memory".to_owned(), (restore_mode == RestoreMode::Memory).into())]);
        self.record_event(EventKind::Resumed, &*live, particulars).await;
        self.go_live(Arc::clone(&live));
        self.note_start(team.id);
        if pause.owned {
            // Removing a large image takes its time, and nobody waits for the disk.
            let (control, state) = (Arc::clone(self), pause.snapshot);
            self.tasks.spawn(async move {
                match control.store.settle().await {
                    Ok(()) => control.discard_state(state).await,
                    // The next start sweeps it.
                    Err(error) => {
                        tracing::error!(%state, %error, "a captured state is kept: the disk was not written");
                    }
                }
            });
        }
        tracing::info!(
            sandbox_id = %id, team_id = %team.id, was_hot, memory = restore_mode == RestoreMode::Memory,
            took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), "sandbox resumed"
        );
        timer.succeeded();
        Ok(live)
    }

    /// Lets frozen processes go on, if there are any, they are wanted, and they answer. Otherwise none of them is left.
    async fn thaw(
        &self,
        paused: &Paused,
        restore_mode: RestoreMode,
    ) -> Result<Option<Arc<dyn EngineSandbox>>, ControlError> {
        let Some(sandbox) = paused.take_hot() else { return Ok(None) };
        if restore_mode == RestoreMode::Memory && sandbox.exit().borrow().is_none() {
            let pause = paused.record.pause.as_ref().expect("only paused ones are hot");
            let boot = boot_again(&paused.record, &paused.record.id, pause, restore_mode)?;
            let woken = async {
                sandbox.thaw().await.map_err(|_| ControlError::Engine("thawed"))?;
                sandbox.set_egress(boot.egress.clone());
                self.introduce(&boot, &*sandbox).await
            };
            match tokio::time::timeout(THAW_TIMEOUT, woken).await {
                Ok(Ok(())) => return Ok(Some(sandbox)),
                failed => {
                    tracing::warn!(sandbox_id = %paused.record.id, ?failed, "thawed processes do not answer: restoring");
                }
            }
        }
        // It has the id that the restored one will have.
        sandbox.kill().await.map_err(|error| {
            tracing::error!(sandbox_id = %paused.record.id, %error, "frozen processes could not be ended");
            ControlError::Engine("resumed: its frozen processes do not end")
        })?;
        Ok(None)
    }
}
