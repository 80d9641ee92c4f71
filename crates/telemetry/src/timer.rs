//! [`OperationTimer`]: records an operation's duration when it is dropped, so that no early return is missed.

use std::time::{Duration, Instant};

use crate::record::{
    CaptureKind, CreatePath, Outcome, ResumePath, build_finished, capture_finished, create_finished,
    resume_finished,
};

/// Measures one operation. `P` tells operations of one kind apart.
#[derive(Debug)]
pub struct OperationTimer<P: Copy> {
    began: Instant,
    path: P,
    outcome: Outcome,
    record: fn(P, Outcome, Duration),
}

impl<P: Copy> OperationTimer<P> {
    fn begin(path: P, outcome: Outcome, record: fn(P, Outcome, Duration)) -> Self {
        Self { began: Instant::now(), path, outcome, record }
    }

    /// Sets the path, once it is known.
    pub fn set_path(&mut self, path: P) {
        self.path = path;
    }

    /// Sets the outcome that is recorded unless [`OperationTimer::succeeded`] is called.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Records a success.
    pub fn succeeded(mut self) {
        self.outcome = Outcome::Ok;
    }
}

impl<P: Copy> Drop for OperationTimer<P> {
    fn drop(&mut self) {
        (self.record)(self.path, self.outcome, self.began.elapsed());
    }
}

/// Measures a create. Until a path is set, its end counts as a refusal.
#[must_use]
pub fn create_timer() -> OperationTimer<CreatePath> {
    OperationTimer::begin(CreatePath::None, Outcome::Refused, create_finished)
}

/// Measures a capture.
#[must_use]
pub fn capture_timer(kind: CaptureKind) -> OperationTimer<CaptureKind> {
    OperationTimer::begin(kind, Outcome::Error, capture_finished)
}

/// Measures a resume.
#[must_use]
pub fn resume_timer() -> OperationTimer<ResumePath> {
    OperationTimer::begin(ResumePath::Snapshot, Outcome::Error, resume_finished)
}

/// Measures a template build.
#[must_use]
pub fn build_timer() -> OperationTimer<()> {
    OperationTimer::begin((), Outcome::Error, |(), outcome, took| build_finished(outcome, took))
}
