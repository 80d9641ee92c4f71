//! Watching a directory. Both forms share one watcher: it collects events as they happen, and they are
//! taken either by a stream or by polling.
//! Taking reads the kernel's queue first, so what happened before the question is in the answer.

pub mod stream;
pub mod tree;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use connectrpc::ConnectError;
use envd_api::filesystem::FilesystemEvent;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::state::lock;
use crate::sys;
use tree::{Lost, Tree};

/// How to watch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Everything below, not just the directory itself.
    pub recursive: bool,
    /// Describe the entry with each event that leaves one.
    pub include_entry: bool,
    /// Watch even where changes made elsewhere go unseen.
    pub allow_network_mounts: bool,
}

/// A directory under watch, not yet being read.
#[derive(Debug)]
pub struct Watcher {
    tree: Tree,
}

/// A directory under watch.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    fd: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    /// Tells of new events.
    news: Notify,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    events: Vec<FilesystemEvent>,
    lost: Option<Lost>,
}

impl Watcher {
    /// Puts a directory, and if asked all below it, under watch. Blocking.
    pub fn new(path: PathBuf, options: Options) -> Result<Self, ConnectError> {
        Ok(Self { tree: Tree::new(path, options)? })
    }

    /// Begins to read events.
    pub fn started(self) -> Result<Running, ConnectError> {
        let failed =
            |error: std::io::Error| ConnectError::internal(format!("error creating watcher: {error}"));
        let fd = sys::awaitable(self.tree.queue().try_clone().map_err(failed)?).map_err(failed)?;
        let state = State { tree: self.tree, events: Vec::new(), lost: None };
        let shared = Arc::new(Shared { fd, state: Mutex::new(state), news: Notify::new() });
        let reader = tokio::spawn(read(Arc::clone(&shared))).abort_handle();
        Ok(Running { shared, reader })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Running {
    /// Takes all events up to now.
    pub async fn take(&self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let shared = Arc::clone(&self.shared);
        let taken = tokio::task::spawn_blocking(move || {
            let mut state = lock(&shared.state);
            state.read();
            match state.lost {
                // What came before the gap is delivered first; the gap is told with the next call.
                Some(lost) if state.events.is_empty() => Err(lost),
                _ => Ok(std::mem::take(&mut state.events)),
            }
        });
        match taken.await {
            Ok(Ok(events)) => Ok(events),
            Ok(Err(lost)) => Err(ConnectError::internal(format!("watcher error: {lost}"))),
            Err(error) => Err(ConnectError::internal(error.to_string())),
        }
    }

    /// Waits until there may be events to take.
    pub async fn news(&self) {
        self.shared.news.notified().await;
    }
}

impl State {
    fn read(&mut self) {
        if self.lost.is_none() {
            self.lost = self.tree.read(&mut self.events).err();
        }
    }
}

/// Empties the kernel's queue whenever there is something in it, before it can overflow.
async fn read(shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = shared.fd.readable().await else { return };
        // Before reading: what arrives while we read makes it ready again.
        ready.clear_ready();
        let reading = Arc::clone(&shared);
        let lost = tokio::task::spawn_blocking(move || {
            let mut state = lock(&reading.state);
            state.read();
            state.lost.is_some()
        });
        let lost = lost.await.unwrap_or(true);
        shared.news.notify_one();
        if lost {
            return;
        }
    }
}

/// The watchers that are polled.
#[derive(Debug, Default)]
pub struct Watchers(Mutex<HashMap<String, Arc<Running>>>);

impl Watchers {
    /// Keeps a watcher and gives its id.
    pub fn insert(&self, watcher: Running) -> Result<String, ConnectError> {
        let mut random = [0u8; 12];
        getrandom::fill(&mut random).map_err(|error| ConnectError::internal(error.to_string()))?;
        let id = random.iter().fold(String::from("w"), |id, byte| id + &format!("{byte:02x}"));
        lock(&self.0).insert(id.clone(), Arc::new(watcher));
        Ok(id)
    }

    /// The watcher of that id.
    pub fn get(&self, id: &str) -> Result<Arc<Running>, ConnectError> {
        lock(&self.0).get(id).cloned().ok_or_else(|| not_found(id))
    }

    /// Ends a watcher.
    pub fn remove(&self, id: &str) -> Result<(), ConnectError> {
        lock(&self.0).remove(id).map(drop).ok_or_else(|| not_found(id))
    }
}

fn not_found(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}
