//! Figures that are nice to have and not worth a write on the request path: last uses and spawn counts.
//! They are collected here and written together, a moment after the first of them.
//! What a crash takes with it is at most that moment.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ids::{KeyId, TemplateId};
use store::Store;
use time::OffsetDateTime;
use tokio::sync::Notify;

/// How long figures wait for company.
const DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Usage {
    pending: Mutex<Pending>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    keys: HashMap<KeyId, OffsetDateTime>,
    spawns: HashMap<TemplateId, (u64, OffsetDateTime)>,
}

impl Usage {
    pub(crate) fn key_used(&self, id: KeyId) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys
            .insert(id, OffsetDateTime::now_utc());
        self.some.notify_one();
    }

    pub(crate) fn spawned(&self, template: &TemplateId) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, at) = pending.spawns.entry(template.clone()).or_insert((0, OffsetDateTime::UNIX_EPOCH));
        *count += 1;
        *at = OffsetDateTime::now_utc();
        self.some.notify_one();
    }

    /// Writes what has come in. A failure loses figures, not sandboxes.
    pub(crate) async fn flush(&self, store: &dyn Store) {
        let pending = mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if !pending.keys.is_empty() {
            let uses: Vec<_> = pending.keys.into_iter().collect();
            if let Err(error) = store.touch_keys(&uses).await {
                tracing::warn!(%error, "last uses of API keys were not recorded");
            }
        }
        if !pending.spawns.is_empty() {
            let spawns: Vec<_> =
                pending.spawns.into_iter().map(|(id, (count, at))| (id, count, at)).collect();
            if let Err(error) = store.count_spawns(&spawns).await {
                tracing::warn!(%error, "spawn counts were not recorded");
            }
        }
    }

    /// Writes whenever there is something, for ever.
    pub(crate) async fn keep_flushing(&self, store: &dyn Store) {
        loop {
            self.some.notified().await;
            tokio::time::sleep(DELAY).await;
            self.flush(store).await;
        }
    }
}
