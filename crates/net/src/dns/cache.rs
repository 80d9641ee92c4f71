//! Responses of resolvers to one sandbox. Sandboxes share none: the time of a response would tell one what another asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use domain::base::Message;
use tokio::time::Instant;

use super::message::{self, Question};

/// Maximum number of responses, and size of one, bytes.
const MAX_ENTRIES: usize = 128;
const MAX_SIZE: usize = 2048;

/// A resolver's response and its age in seconds.
pub(super) type Aged = (Arc<[u8]>, u32);

#[derive(Debug)]
struct Entry {
    response: Arc<[u8]>,
    arrived: Instant,
    expires: Instant,
}

/// The stored responses of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Question, Entry>);

impl Cache {
    /// Returns a stored response that is still valid.
    pub(super) fn get(&self, question: &Question) -> Option<Aged> {
        let (entry, now) = (self.0.get(question)?, Instant::now());
        let age = now.saturating_duration_since(entry.arrived).as_secs();
        (now < entry.expires).then(|| (Arc::clone(&entry.response), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Stores a response for as long as it says, if that is not too large. The one that would expire first makes room.
    pub(super) fn insert(&mut self, question: Question, response: &Arc<[u8]>) {
        let Ok(message) = Message::from_slice(response) else { return };
        let lifetime = message::lifetime(message, &question);
        if lifetime == 0 || response.len() > MAX_SIZE {
            return;
        }
        let arrived = Instant::now();
        self.0.retain(|_, entry| entry.expires > arrived);
        if self.0.len() >= MAX_ENTRIES
            && let Some(first) =
                self.0.iter().min_by_key(|(_, entry)| entry.expires).map(|(key, _)| key.clone())
        {
            self.0.remove(&first);
        }
        let expires = arrived + Duration::from_secs(lifetime.into());
        self.0.insert(question, Entry { response: Arc::clone(response), arrived, expires });
    }
}
