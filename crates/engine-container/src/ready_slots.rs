//! [`ReadySlots`]: a number of slots that are kept ready for creates. Without a ready slot a create makes one, which only takes a
//! little longer.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::host::Host;
use crate::slot::Slot;

/// Slots that are ready to be taken, and the thread that replaces them.
#[derive(Debug)]
pub(crate) struct ReadySlots {
    host: Arc<Host>,
    queue: Mutex<Queue>,
    changed: Condvar,
    filler: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<Slot>,
    /// How many are kept ready; 0 before the filler was started and after it was stopped.
    target: usize,
}

impl ReadySlots {
    /// Without any slots.
    pub(crate) fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, queue: Mutex::default(), changed: Condvar::new(), filler: Mutex::default() })
    }

    /// Starts to keep `target` slots ready, on a thread that ends with [`ReadySlots::stop`]. Does nothing if it was started before.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn fill(self: &Arc<Self>, target: usize) -> io::Result<()> {
        if target == 0 || std::mem::replace(&mut self.queue.lock().target, target) != 0 {
            return Ok(());
        }
        let slots = self.clone();
        let filler = thread::Builder::new().name("slot-filler".into()).spawn(move || slots.keep_full())?;
        *self.filler.lock() = Some(filler);
        Ok(())
    }

    /// Takes a ready slot, if there is one.
    pub(crate) fn take_ready(&self) -> Option<Slot> {
        let slot = self.queue.lock().ready.pop_front();
        self.changed.notify_all();
        slot
    }

    /// Releases every slot and makes no more. Blocks until the thread has ended.
    pub(crate) fn stop(&self) {
        let slots = {
            let mut queue = self.queue.lock();
            queue.target = 0;
            std::mem::take(&mut queue.ready)
        };
        self.changed.notify_all();
        drop(slots);
        // It may be in the middle of making a slot.
        let filler = self.filler.lock().take();
        if let Some(filler) = filler {
            let _ = filler.join();
        }
    }

    fn keep_full(&self) {
        loop {
            let mut queue = self.queue.lock();
            self.changed
                .wait_while(&mut queue, |queue| queue.target != 0 && queue.ready.len() >= queue.target);
            if queue.target == 0 {
                return;
            }
            drop(queue);
            match Slot::prepare(&self.host) {
                Ok(slot) => {
                    let mut queue = self.queue.lock();
                    if queue.target != 0 {
                        queue.ready.push_back(slot);
                    }
                }
                Err(error) => {
                    warn!(%error, "failed to prepare a slot; creates make their own, and the next one triggers a new attempt");
                    // The kernel does not tell when the host has recovered.
                    let mut queue = self.queue.lock();
                    if queue.target != 0 {
                        self.changed.wait(&mut queue);
                    }
                }
            }
        }
    }
}
