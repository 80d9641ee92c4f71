//! Logs of sandboxes: lines that envd reports from inside ([`Control::follow_logs`]) and lines of the control plane itself, both kept
//! in the log store. What envd reports is untrusted: length, fields and rate of lines are limited before they are kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use egress_log::EgressEntry;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use ids::{SandboxId, TeamId};
use logs::{LogLevel, LogLine, LogQuery, LogStore};
use tokio::time::Instant;

use super::RunningSandbox;
use crate::Control;
use crate::envd::{self, EnvdError};

/// Maximum length of a line from envd; longer ones are dropped.
const MAX_LINE: usize = 192 << 10;
/// Maximum number of a line's fields.
const MAX_FIELDS: usize = 32;
/// Bytes per second that a sandbox may log for long; bursts may be larger.
const MAX_RATE: usize = 1 << 20;
/// Time until a broken connection to envd's log is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

impl Control {
    /// Returns lines of a sandbox, running or ended. An unknown sandbox has none.
    pub async fn logs(&self, team: TeamId, id: &SandboxId, query: LogQuery) -> Vec<LogLine> {
        let Some(store) = self.logs.clone() else { return Vec::new() };
        let id = id.clone();
        tokio::task::spawn_blocking(move || store.read(team, id.as_str(), &query)).await.unwrap_or_default()
    }

    /// Returns the connections of a sandbox, running or ended, to hosts. An unknown sandbox has none.
    pub async fn egress(&self, team: TeamId, id: &SandboxId, query: LogQuery) -> Vec<EgressEntry> {
        let Some(log) = self.config.egress_log.clone() else { return Vec::new() };
        let id = id.clone();
        tokio::task::spawn_blocking(move || log.read(team, &id, &query)).await.unwrap_or_default()
    }

    /// Adds a line of the control plane to a sandbox's log.
    pub(super) fn log(
        &self,
        running: &RunningSandbox,
        level: LogLevel,
        message: &str,
        fields: &[(&str, String)],
    ) {
        let Some(store) = self.logs.clone() else { return };
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let line = LogLine::now(level, "sandbox", message, fields);
        let (team, id) = (running.team, running.id.clone());
        self.tasks.spawn_blocking(move || store.append(team, id.as_str(), &[line]));
    }

    /// Copies envd's log into the log store until the sandbox ends: one response that envd keeps open. A broken connection is
    /// opened again; meanwhile envd keeps lines, up to a limit. An envd without a log is not asked again.
    pub(super) async fn follow_logs(self: &Arc<Self>, running: &Arc<RunningSandbox>) {
        let Some(store) = self.logs.clone() else { return };
        loop {
            tokio::select! {
                () = running.wait_ended() => return,
                followed = self.follow_once(running, &store) => match followed {
                    Err(EnvdError::Status(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)) => return,
                    Err(error) => {
                        tracing::debug!(sandbox_id = %running.id, %error, "the connection to a sandbox's log broke");
                    }
                    Ok(()) => {}
                },
            }
            tokio::select! {
                () = running.wait_ended() => return,
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
            }
        }
    }

    async fn follow_once(
        &self,
        running: &Arc<RunningSandbox>,
        store: &Arc<LogStore>,
    ) -> Result<(), EnvdError> {
        let token = self.inner_token(&running.id);
        envd::stream(&*running.engine, envd_api::paths::LOGS, &token, |body| keep_lines(body, running, store))
            .await
    }
}

/// Appends the lines of a response to the log store, at the permitted rate.
async fn keep_lines(
    mut body: Incoming,
    running: &Arc<RunningSandbox>,
    store: &Arc<LogStore>,
) -> Result<(), EnvdError> {
    let mut pending = BytesMut::new();
    let (mut window, mut taken) = (Instant::now(), 0usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        taken += data.len();
        if taken > MAX_RATE {
            // What is not read here stays with envd, up to its limit.
            tokio::time::sleep_until(window + Duration::from_secs(1)).await;
            (window, taken) = (Instant::now(), 0);
        }
        pending.extend_from_slice(&data);
        let mut lines = Vec::new();
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            lines.extend(parse_line(&pending.split_to(end + 1)));
        }
        if pending.len() > MAX_LINE {
            pending.clear();
        }
        let (store, running) = (Arc::clone(store), Arc::clone(running));
        let append = move || store.append(running.team, running.id.as_str(), &lines);
        // Waiting for the disk here is what slows down a sandbox that logs too much.
        let _ = tokio::task::spawn_blocking(append).await;
    }
    Ok(())
}

/// Parses a line from envd and limits its fields; returns none if it is too long or malformed.
fn parse_line(text: &[u8]) -> Option<LogLine> {
    if text.len() > MAX_LINE {
        return None;
    }
    let mut line: LogLine = serde_json::from_slice(text).ok()?;
    while line.fields.len() > MAX_FIELDS {
        line.fields.pop_last();
    }
    Some(line)
}
