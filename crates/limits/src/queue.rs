//! The queue of sandbox starts in front of the engine: first come, first started.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::LimitError;

/// Limits how many sandboxes start at the same time, and how many starts may wait.
#[derive(Debug)]
pub struct StartQueue {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    parallel: usize,
    max_waiting: usize,
}

/// A position in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub struct StartTicket {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// The right to start a sandbox now; the next start begins when it is dropped.
#[derive(Debug)]
pub struct StartPermit {
    _permit: OwnedSemaphorePermit,
}

impl StartQueue {
    /// A queue for `parallel` simultaneous starts (at least one) and `max_waiting` further ones.
    #[must_use]
    pub fn new(parallel: usize, max_waiting: usize) -> Self {
        let parallel = parallel.max(1);
        Self { running: Arc::new(Semaphore::new(parallel)), waiting: Arc::default(), parallel, max_waiting }
    }

    /// Returns how many starts are running or waiting.
    #[must_use]
    pub fn in_progress(&self) -> usize {
        let running = self.parallel.saturating_sub(self.running.available_permits());
        running + self.waiting.load(Ordering::Relaxed)
    }

    /// Joins the queue.
    ///
    /// # Errors
    /// [`LimitError::QueueFull`].
    pub fn join(&self) -> Result<StartTicket, LimitError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let ticket = StartTicket { running: Arc::clone(&self.running), waiting: Arc::clone(&self.waiting) };
        // With a free permit nothing really waits, however short the queue may be.
        if before >= self.max_waiting && self.running.available_permits() == 0 {
            return Err(LimitError::QueueFull(before));
        }
        Ok(ticket)
    }
}

impl StartTicket {
    /// Waits for this start's turn.
    ///
    /// # Errors
    /// [`LimitError::Closed`].
    pub async fn turn(self) -> Result<StartPermit, LimitError> {
        let permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| LimitError::Closed)?;
        Ok(StartPermit { _permit: permit })
    }
}

impl Drop for StartTicket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_and_an_empty_one_does_not_wait() {
        let queue = StartQueue::new(1, 1);
        let running = queue.join().unwrap().turn().await.unwrap();
        let waiting = queue.join().unwrap();
        assert!(matches!(queue.join(), Err(LimitError::QueueFull(1))));
        drop(running);
        let _running = waiting.turn().await.unwrap();
        queue.join().unwrap();
    }
}
