//! Who may start how much: places per team, and the queue in front of the engine.
//! Both are given back by dropping what was handed out, on whatever path.
//! The queue is fair: first come, first started.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ids::TeamId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ControlError;

/// Running and starting sandboxes of each team.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: Mutex<HashMap<TeamId, u32>>,
}

/// One place of a team.
#[derive(Debug)]
pub(crate) struct Reservation {
    places: Arc<Places>,
    team: TeamId,
}

impl Places {
    /// Takes a place if fewer than `limit` are taken; a limit of zero is none.
    pub(crate) fn reserve(self: &Arc<Self>, team: TeamId, limit: u32) -> Result<Reservation, ControlError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(team).or_default();
        if limit > 0 && *count >= limit {
            return Err(ControlError::TeamLimit(limit));
        }
        *count += 1;
        Ok(Reservation { places: Arc::clone(self), team })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.team) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.team);
            }
        }
    }
}

/// The queue in front of the engine.
#[derive(Debug)]
pub(crate) struct StartQueue {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    parallel: usize,
    most_waiting: usize,
}

/// A ticket in the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl StartQueue {
    pub(crate) fn new(parallel: usize, most_waiting: usize) -> Self {
        let parallel = parallel.max(1);
        Self { running: Arc::new(Semaphore::new(parallel)), waiting: Arc::default(), parallel, most_waiting }
    }

    /// Starts under way or waiting.
    pub(crate) fn under_way(&self) -> usize {
        let running = self.parallel.saturating_sub(self.running.available_permits());
        running + self.waiting.load(Ordering::Relaxed)
    }

    /// Joins the queue unless it is full.
    pub(crate) fn join(&self) -> Result<Ticket, ControlError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket { running: Arc::clone(&self.running), waiting: Arc::clone(&self.waiting) };
        // A free place means nobody really waits, however short the queue.
        if before >= self.most_waiting && self.running.available_permits() == 0 {
            return Err(ControlError::Capacity(format!("{before} sandboxes are waiting to be started")));
        }
        Ok(ticket)
    }
}

impl Ticket {
    /// Waits for its turn. The turn is over when the permit is dropped.
    pub(crate) async fn turn(self) -> Result<OwnedSemaphorePermit, ControlError> {
        let running = Arc::clone(&self.running);
        running.acquire_owned().await.map_err(|_| ControlError::ShuttingDown)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let places = Arc::new(Places::default());
        let team = TeamId::generate();
        let first = places.reserve(team, 1).unwrap();
        assert!(matches!(places.reserve(team, 1), Err(ControlError::TeamLimit(1))));
        assert!(places.reserve(TeamId::generate(), 1).is_ok(), "another team has places of its own");
        drop(first);
        let _again = places.reserve(team, 1).unwrap();
        let _unlimited = places.reserve(team, 0).unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_an_empty_one_does_not_wait() {
        let queue = StartQueue::new(1, 1);
        let running = queue.join().unwrap().turn().await.unwrap();
        let waiting = queue.join().unwrap();
        assert!(matches!(queue.join(), Err(ControlError::Capacity(_))));
        drop(running);
        let _running = waiting.turn().await.unwrap();
        queue.join().unwrap();
    }
}
