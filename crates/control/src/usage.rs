//! [`Usage`]: last uses of API keys and spawn counts of templates. They are not worth a write per request, so they are collected and
//! written together some seconds later; a crash loses at most those seconds.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use catalog::Catalog;
use ids::{KeyId, TemplateId};
use parking_lot::Mutex;
use store::Store;
use time::OffsetDateTime;
use tokio::sync::Notify;

/// Time from the first use to the write.
const DELAY: Duration = Duration::from_secs(5);

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pending: Mutex<Pending>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    keys: HashMap<KeyId, OffsetDateTime>,
    spawns: HashMap<TemplateId, (u64, OffsetDateTime)>,
}

impl Usage {
    /// Notes that an API key was used.
    pub(crate) fn key_used(&self, id: KeyId) {
        self.pending.lock().keys.insert(id, OffsetDateTime::now_utc());
        self.added.notify_one();
    }

    /// Counts a sandbox of a template.
    pub(crate) fn template_used(&self, template: &TemplateId) {
        let mut pending = self.pending.lock();
        let (count, at) = pending.spawns.entry(template.clone()).or_insert((0, OffsetDateTime::UNIX_EPOCH));
        *count += 1;
        *at = OffsetDateTime::now_utc();
        self.added.notify_one();
    }

    /// Writes the uses. If the store fails, they are lost with a warning.
    pub(crate) async fn flush(&self, store: &dyn Store, catalog: &Catalog) {
        let pending = mem::take(&mut *self.pending.lock());
        if !pending.keys.is_empty() {
            let uses: Vec<_> = pending.keys.into_iter().collect();
            if let Err(error) = store.touch_keys(&uses).await {
                tracing::warn!(%error, "failed to record last uses of API keys");
            }
        }
        if !pending.spawns.is_empty() {
            let spawns: Vec<_> =
                pending.spawns.into_iter().map(|(id, (count, at))| (id, count, at)).collect();
            match store.count_spawns(&spawns).await {
                Ok(()) => catalog.count_spawns(&spawns),
                Err(error) => tracing::warn!(%error, "failed to record spawn counts"),
            }
        }
    }

    /// Writes uses as they come, without end.
    pub(crate) async fn keep_flushing(&self, store: &dyn Store, catalog: &Catalog) {
        loop {
            self.added.notified().await;
            tokio::time::sleep(DELAY).await;
            self.flush(store, catalog).await;
        }
    }
}
