//! A background thread that processes items of a queue one after another.
//!
//! Dropping it stops the thread: queued items are dropped, and the item in progress may stop early.
//! The drop returns once the thread has ended, so everything that the thread owns is dropped by
//! then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

/// A thread and its queue.
#[derive(Debug)]
pub(crate) struct WorkerThread<T> {
    /// Both are `None` only during `drop`.
    queue: Option<Sender<T>>,
    thread: Option<JoinHandle<()>>,
    is_stopping: Arc<AtomicBool>,
}

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts the thread. For each item it calls `work` with the item and a function that returns
    /// whether the work should continue.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(crate) fn start(
        name: &str,
        mut work: impl FnMut(T, &dyn Fn() -> bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (send, queue) = mpsc::channel();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let stopping = is_stopping.clone();
        let should_continue = move || !stopping.load(Ordering::Relaxed);
        let process_all = move || {
            for item in queue.into_iter().take_while(|_| should_continue()) {
                work(item, &should_continue);
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(process_all)?;
        Ok(Self { queue: Some(send), thread: Some(thread), is_stopping })
    }
}

impl<T> WorkerThread<T> {
    /// Queues an item.
    pub(crate) fn add(&self, item: T) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(item);
        }
    }
}

impl<T> Drop for WorkerThread<T> {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
