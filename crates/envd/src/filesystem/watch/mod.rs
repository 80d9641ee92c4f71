//! Watchers of directories. A watcher collects events as they happen; a client reads them either as a stream
//! or by polling.
//! Taking events reads the kernel's queue first, so all events before a poll are in its response.

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

use crate::filesystem::ops;
use crate::identity::Identity;
use crate::state::lock;
use crate::sys;
use tree::{LostEvents, WatchedTree};

/// Options of a watcher.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether to watch all directories below, too.
    pub recursive: bool,
    /// Whether events describe the entry, if it still exists.
    pub include_entry: bool,
    /// Whether to watch network filesystems, where changes of other machines go unnoticed.
    pub allow_network_mounts: bool,
}

/// A watcher whose events are not read yet.
#[derive(Debug)]
pub struct Watcher {
    tree: WatchedTree,
    identity: Identity,
}

/// A watcher whose events are being read.
#[derive(Debug)]
pub struct RunningWatcher {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    fd: AsyncFd<OwnedFd>,
    state: Mutex<WatcherState>,
    /// Notified of new events.
    new_events: Notify,
}

#[derive(Debug)]
struct WatcherState {
    tree: WatchedTree,
    /// New directories are watched, and entries described, with the rights of this user.
    identity: Identity,
    events: Vec<FilesystemEvent>,
    lost: Option<LostEvents>,
}

impl Watcher {
    /// Begins to watch a directory with the rights of a user. Blocking.
    pub fn new(path: PathBuf, options: Options, identity: &Identity) -> Result<Self, ConnectError> {
        let tree = ops::acting(identity, || WatchedTree::new(path, options))?;
        Ok(Self { tree, identity: identity.clone() })
    }

    /// Begins to read events.
    pub fn started(self) -> Result<RunningWatcher, ConnectError> {
        let failed =
            |error: std::io::Error| ConnectError::internal(format!("error creating watcher: {error}"));
        let fd = sys::awaitable(self.tree.queue().try_clone().map_err(failed)?).map_err(failed)?;
        let (tree, identity) = (self.tree, self.identity);
        let state = WatcherState { tree, identity, events: Vec::new(), lost: None };
        let shared = Arc::new(Shared { fd, state: Mutex::new(state), new_events: Notify::new() });
        let reader = tokio::spawn(read(Arc::clone(&shared))).abort_handle();
        Ok(RunningWatcher { shared, reader })
    }
}

impl Drop for RunningWatcher {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl RunningWatcher {
    /// Takes all events up to now.
    pub async fn take(&self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let shared = Arc::clone(&self.shared);
        let taken = tokio::task::spawn_blocking(move || {
            let mut state = lock(&shared.state);
            state.read();
            match state.lost {
                // Events before the gap are delivered first; the next call reports the gap.
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
    pub async fn new_events(&self) {
        self.shared.new_events.notified().await;
    }
}

impl WatcherState {
    fn read(&mut self) {
        if self.lost.is_none() {
            let (tree, events) = (&mut self.tree, &mut self.events);
            let read = self.identity.run(|| tree.read(events));
            self.lost = read.unwrap_or(Err(LostEvents::Rights)).err();
        }
    }
}

/// Reads the kernel's queue whenever it is not empty, before it can overflow.
async fn read(shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = shared.fd.readable().await else { return };
        // Before reading: events that arrive while it reads make it ready again.
        ready.clear_ready();
        let reading = Arc::clone(&shared);
        let lost = tokio::task::spawn_blocking(move || {
            let mut state = lock(&reading.state);
            state.read();
            state.lost.is_some()
        });
        let lost = lost.await.unwrap_or(true);
        shared.new_events.notify_one();
        if lost {
            return;
        }
    }
}

/// The watchers that clients poll, by id.
#[derive(Debug, Default)]
pub struct Watchers(Mutex<HashMap<String, Arc<RunningWatcher>>>);

impl Watchers {
    /// Adds a watcher and returns its id.
    pub fn insert(&self, watcher: RunningWatcher) -> Result<String, ConnectError> {
        let mut random = [0u8; 12];
        getrandom::fill(&mut random).map_err(|error| ConnectError::internal(error.to_string()))?;
        let id = random.iter().fold(String::from("w"), |id, byte| id + &format!("{byte:02x}"));
        lock(&self.0).insert(id.clone(), Arc::new(watcher));
        Ok(id)
    }

    /// Finds a watcher by its id.
    pub fn get(&self, id: &str) -> Result<Arc<RunningWatcher>, ConnectError> {
        lock(&self.0).get(id).cloned().ok_or_else(|| not_found(id))
    }

    /// Removes a watcher.
    pub fn remove(&self, id: &str) -> Result<(), ConnectError> {
        lock(&self.0).remove(id).map(drop).ok_or_else(|| not_found(id))
    }
}

fn not_found(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}
