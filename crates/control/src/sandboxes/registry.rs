//! All sandboxes that have not ended: running or paused, never both, never neither while they change from one to the other.
//! Everybody looks here; the store is only read at the start.
//! One lock for both kinds, held for moments only.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ids::{SandboxId, TeamId, TemplateId};

use crate::sandboxes::Paused;
use crate::sandboxes::running::{Live, SandboxInfo};

/// A sandbox in either state.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Running(Arc<Live>),
    Paused(Arc<Paused>),
}

impl Entry {
    pub(crate) fn team(&self) -> TeamId {
        match self {
            Self::Running(live) => live.team,
            Self::Paused(paused) => paused.record.team,
        }
    }

    pub(crate) fn info(&self) -> SandboxInfo {
        match self {
            Self::Running(live) => live.info(),
            Self::Paused(paused) => paused.record.clone().into(),
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Table(RwLock<HashMap<SandboxId, Entry>>);

impl Table {
    /// The sandbox of this id.
    pub(crate) fn entry(&self, id: &SandboxId) -> Option<Entry> {
        self.read().get(id).cloned()
    }

    /// The running sandbox of this id.
    pub(crate) fn get(&self, id: &SandboxId) -> Option<Arc<Live>> {
        match self.read().get(id) {
            Some(Entry::Running(live)) => Some(Arc::clone(live)),
            _ => None,
        }
    }

    /// The paused sandbox of this id.
    pub(crate) fn paused(&self, id: &SandboxId) -> Option<Arc<Paused>> {
        match self.read().get(id) {
            Some(Entry::Paused(paused)) => Some(Arc::clone(paused)),
            _ => None,
        }
    }

    /// Whether this very paused sandbox is still there.
    pub(crate) fn holds(&self, paused: &Arc<Paused>) -> bool {
        self.paused(&paused.record.id).is_some_and(|there| Arc::ptr_eq(&there, paused))
    }

    /// Puts a running sandbox in, in place of whatever had its id.
    pub(crate) fn insert(&self, live: Arc<Live>) {
        self.write().insert(live.id.clone(), Entry::Running(live));
    }

    /// Puts a paused sandbox in, in place of whatever had its id.
    pub(crate) fn insert_paused(&self, paused: Arc<Paused>) {
        self.write().insert(paused.record.id.clone(), Entry::Paused(paused));
    }

    /// Takes this very running sandbox out; a successor of the same id stays.
    pub(crate) fn remove(&self, live: &Live) {
        let mut table = self.write();
        if matches!(table.get(&live.id), Some(Entry::Running(there)) if there.execution == live.execution) {
            table.remove(&live.id);
        }
    }

    /// Takes a paused sandbox out.
    pub(crate) fn remove_paused(&self, paused: &Arc<Paused>) {
        let mut table = self.write();
        if matches!(table.get(&paused.record.id), Some(Entry::Paused(there)) if Arc::ptr_eq(there, paused)) {
            table.remove(&paused.record.id);
        }
    }

    /// A team's sandboxes, in no order.
    pub(crate) fn of_team(&self, team: TeamId) -> Vec<Entry> {
        self.read().values().filter(|entry| entry.team() == team).cloned().collect()
    }

    /// A team's running sandboxes, in no order.
    pub(crate) fn running_of(&self, team: TeamId) -> Vec<Arc<Live>> {
        let running = |entry| match entry {
            Entry::Running(live) => Some(live),
            Entry::Paused(_) => None,
        };
        self.of_team(team).into_iter().filter_map(running).collect()
    }

    /// Sandboxes that came from this template.
    pub(crate) fn using(&self, template: &TemplateId) -> Vec<SandboxInfo> {
        let infos = self.read().values().map(Entry::info).collect::<Vec<_>>();
        infos.into_iter().filter(|info| info.template == *template).collect()
    }

    /// Every paused sandbox.
    pub(crate) fn all_paused(&self) -> Vec<Arc<Paused>> {
        let table = self.read();
        let paused = table.values().filter_map(|entry| match entry {
            Entry::Paused(paused) => Some(Arc::clone(paused)),
            Entry::Running(_) => None,
        });
        paused.collect()
    }

    /// How many are running.
    pub(crate) fn running(&self) -> usize {
        self.read().values().filter(|entry| matches!(entry, Entry::Running(_))).count()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<SandboxId, Entry>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<SandboxId, Entry>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
