//! The event stream of a process: its start, its output, its end, and keepalive messages.
//! The same stream serves `Start` and `Connect`.

use std::time::Duration;

use envd_api::process::ProcessEvent;
use envd_api::process::process_event::data_event::Output;
use envd_api::process::process_event::{DataEvent, EndEvent, KeepAlive, StartEvent};
use futures::Stream;
use http::HeaderMap;
use tokio::sync::mpsc;

use crate::process::registry::OutputEvent;

/// Interval of keepalive messages if the client does not choose one.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

/// Returns the interval of keepalive messages that a request asks for.
pub fn keepalive(headers: &HeaderMap) -> Duration {
    headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|&seconds| seconds > 0)
        .map_or(DEFAULT_KEEPALIVE, Duration::from_secs)
}

enum Next {
    Start(u32),
    Output,
    Nothing,
}

/// Streams the events of a process from now on.
pub fn live(
    pid: u32,
    events: mpsc::Receiver<OutputEvent>,
    keepalive: Duration,
) -> impl Stream<Item = ProcessEvent> + Send {
    futures::stream::unfold((Next::Start(pid), events), move |(next, mut events)| async move {
        match next {
            Next::Start(pid) => Some((start(pid), (Next::Output, events))),
            Next::Nothing => None,
            Next::Output => match tokio::time::timeout(keepalive, events.recv()).await {
                Err(_elapsed) => Some((alive(), (Next::Output, events))),
                Ok(None) => None,
                Ok(Some(OutputEvent::End(event))) => Some((end(event), (Next::Nothing, events))),
                Ok(Some(OutputEvent::Stdout(bytes))) => {
                    Some((data(Output::Stdout(bytes.into())), (Next::Output, events)))
                }
                Ok(Some(OutputEvent::Stderr(bytes))) => {
                    Some((data(Output::Stderr(bytes.into())), (Next::Output, events)))
                }
                Ok(Some(OutputEvent::Pty(bytes))) => {
                    Some((data(Output::Pty(bytes.into())), (Next::Output, events)))
                }
            },
        }
    })
}

/// Streams the events of a process that has ended.
pub fn ended(pid: u32, event: EndEvent) -> impl Stream<Item = ProcessEvent> + Send {
    futures::stream::iter([start(pid), end(event)])
}

fn start(pid: u32) -> ProcessEvent {
    ProcessEvent { event: Some(StartEvent { pid, ..Default::default() }.into()), ..Default::default() }
}

fn data(output: Output) -> ProcessEvent {
    ProcessEvent {
        event: Some(DataEvent { output: Some(output), ..Default::default() }.into()),
        ..Default::default()
    }
}

fn end(event: EndEvent) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..Default::default() }
}

fn alive() -> ProcessEvent {
    ProcessEvent { event: Some(KeepAlive::default().into()), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn reads_the_interval() {
        let mut headers = HeaderMap::new();
        assert_eq!(keepalive(&headers), DEFAULT_KEEPALIVE);
        for (value, seconds) in [("50", 50), (" 7 ", 7), ("0", 90), ("-1", 90), ("x", 90)] {
            headers.insert("keepalive-ping-interval", HeaderValue::from_static(value));
            assert_eq!(keepalive(&headers), Duration::from_secs(seconds), "{value}");
        }
    }
}
