//! [`Registry`]: all sandboxes that have not ended, each either running or paused. A sandbox that changes from one to the other is
//! always in the registry. Records in the store are only read at the start of the server.

use std::collections::HashMap;
use std::sync::Arc;

use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use parking_lot::RwLock;

use super::{PausedSandbox, RunningSandbox, SandboxInfo};

/// A sandbox in either state.
#[derive(Debug, Clone)]
pub(crate) enum AnySandbox {
    Running(Arc<RunningSandbox>),
    Paused(Arc<PausedSandbox>),
}

impl AnySandbox {
    pub(crate) fn team(&self) -> TeamId {
        match self {
            Self::Running(running) => running.team,
            Self::Paused(paused) => paused.record.team,
        }
    }

    pub(crate) fn info(&self) -> SandboxInfo {
        match self {
            Self::Running(running) => running.info(),
            Self::Paused(paused) => paused.record.clone().into(),
        }
    }
}

/// All sandboxes that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Locked for moments only.
    sandboxes: RwLock<HashMap<SandboxId, AnySandbox>>,
}

impl Registry {
    /// Returns the sandbox with this id.
    pub(crate) fn get(&self, id: &SandboxId) -> Option<AnySandbox> {
        self.sandboxes.read().get(id).cloned()
    }

    /// Returns the running sandbox with this id.
    pub(crate) fn running(&self, id: &SandboxId) -> Option<Arc<RunningSandbox>> {
        match self.sandboxes.read().get(id) {
            Some(AnySandbox::Running(running)) => Some(Arc::clone(running)),
            _ => None,
        }
    }

    /// Returns the paused sandbox with this id.
    pub(crate) fn paused(&self, id: &SandboxId) -> Option<Arc<PausedSandbox>> {
        match self.sandboxes.read().get(id) {
            Some(AnySandbox::Paused(paused)) => Some(Arc::clone(paused)),
            _ => None,
        }
    }

    /// Returns whether this paused sandbox has not been replaced or removed.
    pub(crate) fn holds(&self, paused: &Arc<PausedSandbox>) -> bool {
        self.paused(&paused.record.id).is_some_and(|present| Arc::ptr_eq(&present, paused))
    }

    /// Registers a running sandbox; it replaces any other with its id.
    pub(crate) fn insert_running(&self, running: Arc<RunningSandbox>) {
        self.sandboxes.write().insert(running.id.clone(), AnySandbox::Running(running));
    }

    /// Registers a paused sandbox; it replaces any other with its id.
    pub(crate) fn insert_paused(&self, paused: Arc<PausedSandbox>) {
        self.sandboxes.write().insert(paused.record.id.clone(), AnySandbox::Paused(paused));
    }

    /// Removes a running sandbox unless a later run of it has replaced it.
    pub(crate) fn remove_running(&self, running: &RunningSandbox) {
        let mut sandboxes = self.sandboxes.write();
        if matches!(sandboxes.get(&running.id), Some(AnySandbox::Running(present)) if present.execution == running.execution)
        {
            sandboxes.remove(&running.id);
        }
    }

    /// Removes a paused sandbox unless it has been replaced.
    pub(crate) fn remove_paused(&self, paused: &Arc<PausedSandbox>) {
        let mut sandboxes = self.sandboxes.write();
        if matches!(sandboxes.get(&paused.record.id), Some(AnySandbox::Paused(present)) if Arc::ptr_eq(present, paused))
        {
            sandboxes.remove(&paused.record.id);
        }
    }

    /// Returns a team's sandboxes, in no order.
    pub(crate) fn of_team(&self, team: TeamId) -> Vec<AnySandbox> {
        self.sandboxes.read().values().filter(|sandbox| sandbox.team() == team).cloned().collect()
    }

    /// Returns a team's running sandboxes, in no order.
    pub(crate) fn running_of(&self, team: TeamId) -> Vec<Arc<RunningSandbox>> {
        let running = |sandbox| match sandbox {
            AnySandbox::Running(running) => Some(running),
            AnySandbox::Paused(_) => None,
        };
        self.of_team(team).into_iter().filter_map(running).collect()
    }

    /// Returns the sandboxes of a template.
    pub(crate) fn of_template(&self, template: &TemplateId) -> Vec<SandboxInfo> {
        let infos = self.sandboxes.read().values().map(AnySandbox::info).collect::<Vec<_>>();
        infos.into_iter().filter(|info| info.template == *template).collect()
    }

    /// Returns all paused sandboxes.
    pub(crate) fn all_paused(&self) -> Vec<Arc<PausedSandbox>> {
        let sandboxes = self.sandboxes.read();
        let paused = sandboxes.values().filter_map(|sandbox| match sandbox {
            AnySandbox::Paused(paused) => Some(Arc::clone(paused)),
            AnySandbox::Running(_) => None,
        });
        paused.collect()
    }

    /// Returns whether a sandbox is paused at this snapshot.
    pub(crate) fn is_paused_at(&self, snapshot: SnapshotId) -> bool {
        let is_at = |paused: &Arc<PausedSandbox>| {
            paused.record.pause.as_ref().is_some_and(|pause| pause.snapshot == snapshot)
        };
        self.all_paused().iter().any(is_at)
    }

    /// Returns the number of running sandboxes.
    pub(crate) fn running_count(&self) -> usize {
        self.sandboxes.read().values().filter(|sandbox| matches!(sandbox, AnySandbox::Running(_))).count()
    }
}
