//! The event stream of a watcher: its start, then events as they happen, and keepalive messages.

use std::collections::VecDeque;
use std::time::Duration;

use connectrpc::ConnectError;
use envd_api::filesystem::watch_dir_response::{KeepAlive, StartEvent};
use envd_api::filesystem::{FilesystemEvent, WatchDirResponse};
use futures::Stream;

use crate::filesystem::watch::RunningWatcher;

struct StreamState {
    watcher: RunningWatcher,
    events: VecDeque<FilesystemEvent>,
    started: bool,
    failed: bool,
}

/// Streams the events of a watcher, until events are lost.
pub fn events(
    watcher: RunningWatcher,
    keepalive: Duration,
) -> impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send {
    let state = StreamState { watcher, events: VecDeque::new(), started: false, failed: false };
    futures::stream::unfold(state, move |mut state| async move {
        if state.failed {
            return None;
        }
        if !state.started {
            state.started = true;
            return Some((Ok(response(StartEvent::default())), state));
        }
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some((Ok(response(event)), state));
            }
            if tokio::time::timeout(keepalive, state.watcher.new_events()).await.is_err() {
                return Some((Ok(response(KeepAlive::default())), state));
            }
            match state.watcher.take().await {
                Ok(events) => state.events.extend(events),
                Err(error) => {
                    state.failed = true;
                    return Some((Err(error), state));
                }
            }
        }
    })
}

fn response(event: impl Into<envd_api::filesystem::watch_dir_response::Event>) -> WatchDirResponse {
    WatchDirResponse { event: Some(event.into()), ..Default::default() }
}
