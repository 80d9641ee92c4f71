//! Threads that do one thing after the other, beside everything else, until the engine is closed.
//! What they have begun when it is closed they may cut short; what they have not is left.
//! Everything that they own is gone once they are.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

/// A thread and what it is to do.
#[derive(Debug)]
pub(crate) struct WorkerThread<T> {
    /// Both none only while it is dropped.
    queue: Option<Sender<T>>,
    thread: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts the thread; `work` is given what is to be done and a way to ask whether that is still wanted.
    pub(crate) fn start(
        name: &str,
        mut work: impl FnMut(T, &dyn Fn() -> bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (send, queue) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let should_continue = move || !over.load(Ordering::Relaxed);
        let process_all = move || {
            for item in queue.into_iter().take_while(|_| should_continue()) {
                work(item, &should_continue);
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(process_all)?;
        Ok(Self { queue: Some(send), thread: Some(thread), is_over })
    }
}

impl<T> WorkerThread<T> {
    /// Has this done after all that was asked for before.
    pub(crate) fn add(&self, item: T) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(item);
        }
    }
}

impl<T> Drop for WorkerThread<T> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
