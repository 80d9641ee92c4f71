//! Builds that this server has in hand: waiting for their start, or under way.
//! A job ends with its build; what is known afterwards is in the store and in the log's file.
//! Cancelling is asked for here and noticed by the worker at its next wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ids::{BuildId, TemplateId};
use tokio_util::sync::CancellationToken;

use super::log::BuildLog;

/// One build under way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) build: BuildId,
    pub(super) template: TemplateId,
    pub(super) log: BuildLog,
    /// Told to stop: another build took its place, or its template is gone.
    pub(super) cancel: CancellationToken,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    under_way: Mutex<HashMap<BuildId, Arc<Job>>>,
}

impl Jobs {
    /// Adds a job, unless its build has one already.
    pub(super) fn begin(&self, build: BuildId, template: &TemplateId) -> Option<Arc<Job>> {
        let mut jobs = self.lock();
        if jobs.contains_key(&build) {
            return None;
        }
        let job = Arc::new(Job {
            build,
            template: template.clone(),
            log: BuildLog::default(),
            cancel: CancellationToken::new(),
        });
        jobs.insert(build, Arc::clone(&job));
        Some(job)
    }

    pub(super) fn end(&self, build: BuildId) {
        self.lock().remove(&build);
    }

    pub(super) fn get(&self, build: BuildId) -> Option<Arc<Job>> {
        self.lock().get(&build).cloned()
    }

    /// Cancels a template's builds but for `keep`.
    pub(crate) fn cancel_others(&self, template: &TemplateId, keep: Option<BuildId>) {
        let jobs = self.lock();
        let others = jobs.values().filter(|job| job.template == *template && Some(job.build) != keep);
        others.for_each(|job| job.cancel.cancel());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Arc<Job>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
