//! [`Jobs`]: the builds that this server carries out now. A job ends with its build; afterwards its outcome is in the store and its
//! log in a file.

use std::collections::HashMap;
use std::sync::Arc;

use ids::{BuildId, TemplateId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::log::BuildLog;

/// A build in progress.
#[derive(Debug)]
pub(crate) struct Job {
    build: BuildId,
    template: TemplateId,
    pub(crate) log: BuildLog,
    /// Cancelled when another build replaces this one, or its template is deleted.
    pub(crate) cancel: CancellationToken,
}

/// All builds in progress.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    by_build: Mutex<HashMap<BuildId, Arc<Job>>>,
}

impl Jobs {
    /// Adds a job; returns none if the build has one already.
    pub(crate) fn begin(&self, build: BuildId, template: &TemplateId) -> Option<Arc<Job>> {
        let mut jobs = self.by_build.lock();
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

    pub(crate) fn end(&self, build: BuildId) {
        self.by_build.lock().remove(&build);
    }

    pub(crate) fn get(&self, build: BuildId) -> Option<Arc<Job>> {
        self.by_build.lock().get(&build).cloned()
    }

    /// Cancels a template's builds except `keep`.
    pub(crate) fn cancel_others(&self, template: &TemplateId, keep: Option<BuildId>) {
        let jobs = self.by_build.lock();
        let others = jobs.values().filter(|job| job.template == *template && Some(job.build) != keep);
        others.for_each(|job| job.cancel.cancel());
    }
}
