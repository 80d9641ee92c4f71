//! One server: started when it is needed, started again after a crash, and refused for a while if it crashes again and again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rmcp::model::{ListResourceTemplatesResult, PaginatedRequestParams, ServerCapabilities};
use rmcp::service::{Peer, RunningService, ServiceError, serve_client};
use rmcp::{RoleClient, ServiceExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::gateway::{Changes, Gateway};
use crate::index::Names;
use crate::launch::{Launch, Source};
use crate::limits::{MAX_CALLS, MAX_LIST_BYTES, MAX_NAMES, MAX_STARTS, START_TIMEOUT, START_WINDOW};
use crate::spawn::{self, Process};
use crate::upstream::Upstream;
use crate::{install, remote};

/// A configured server.
pub(crate) struct Server {
    number: usize,
    pub(crate) launch: Launch,
    changes: Arc<Changes>,
    running: tokio::sync::Mutex<Option<Arc<Running>>>,
    starts: Mutex<VecDeque<Instant>>,
    used: Mutex<Instant>,
    names: Mutex<Option<Arc<Names>>>,
    /// Calls that it works on.
    pub(crate) calls: Semaphore,
}

/// A server that runs, or a connection to a remote one.
pub(crate) struct Running {
    service: RunningService<RoleClient, Upstream>,
    process: Option<Process>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Running {
    pub(crate) fn peer(&self) -> &Peer<RoleClient> {
        self.service.peer()
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        self.service.service()
    }

    /// The last of what it wrote to its standard error, for messages.
    pub(crate) fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// Memory of the process and its children, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.process.as_ref().map(Process::memory).unwrap_or_default()
    }

    fn is_closed(&self) -> bool {
        self.service.is_closed() || self.peer().is_transport_closed()
    }

    fn capabilities(&self) -> ServerCapabilities {
        self.peer().peer_info().map(|info| info.capabilities.clone()).unwrap_or_default()
    }
}

impl Server {
    pub(crate) fn new(number: usize, launch: Launch, changes: Arc<Changes>) -> Self {
        Self {
            number,
            launch,
            changes,
            running: tokio::sync::Mutex::default(),
            starts: Mutex::default(),
            used: Mutex::new(Instant::now()),
            names: Mutex::default(),
            calls: Semaphore::new(MAX_CALLS),
        }
    }

    /// Whether its names are known.
    pub(crate) fn is_ready(&self) -> bool {
        self.names.lock().is_some()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.try_lock().map_or(true, |running| running.is_some())
    }

    pub(crate) fn names(&self) -> Arc<Names> {
        self.names.lock().clone().unwrap_or_default()
    }

    /// Since when nobody uses it; `None` if it works or does not run.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let running = self.running.try_lock().ok()?;
        let idle = running
            .as_ref()
            .is_some_and(|running| running.process.is_some() && Arc::strong_count(running) == 1);
        idle.then(|| *self.used.lock())
    }

    /// Stops it if it is idle.
    pub(crate) fn stop_idle(&self) {
        if self.idle_since().is_some()
            && let Ok(mut running) = self.running.try_lock()
        {
            *running = None;
        }
    }

    /// Kills it: it does not answer. Its next call starts it again.
    pub(crate) async fn kill(&self, unresponsive: &Arc<Running>) {
        let mut running = self.running.lock().await;
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(running, unresponsive)) {
            tracing::warn!(server = self.launch.name, "does not answer and is killed");
            if let Some(process) = &unresponsive.process {
                process.kill();
            }
            *running = None;
        }
    }

    /// The running server; starts it if it does not run.
    ///
    /// # Errors
    /// It does not start, or was started too often.
    pub(crate) async fn running(&self, gateway: &Gateway) -> Result<Arc<Running>, Error> {
        let mut slot = self.running.lock().await;
        *self.used.lock() = Instant::now();
        if let Some(running) = slot.as_ref().filter(|running| !running.is_closed()) {
            return Ok(running.clone());
        }
        if let Some(ended) = slot.take() {
            tracing::warn!(server = self.launch.name, "ended: {}", ended.last_words());
        }
        self.count_start()?;
        let place = match self.launch.source {
            Source::Remote { .. } => None,
            _ => Some(gateway.place(&self.launch.name).await?),
        };
        let upstream = Upstream::new(self.number, self.launch.name.clone(), self.changes.clone());
        let running = Arc::new(start(&self.launch, upstream, place).await?);
        // After a crash it may offer other things than before.
        self.changes.mark(self.number);
        *slot = Some(running.clone());
        Ok(running)
    }

    fn count_start(&self) -> Result<(), Error> {
        let mut starts = self.starts.lock();
        while starts.front().is_some_and(|start| start.elapsed() > START_WINDOW) {
            starts.pop_front();
        }
        if starts.len() >= MAX_STARTS {
            let reason = format!(
                "it was started {MAX_STARTS} times within {} s and is left alone for a while",
                START_WINDOW.as_secs()
            );
            return Err(Error::Start { server: self.launch.name.clone(), reason });
        }
        starts.push_back(Instant::now());
        Ok(())
    }

    /// Reads what the server offers.
    ///
    /// # Errors
    /// It does not start, does not answer, or offers too much.
    pub(crate) async fn read_names(&self, gateway: &Gateway) -> Result<(), Error> {
        let running = self.running(gateway).await?;
        let names = read_names(&self.launch.name, &running).await?;
        *self.names.lock() = Some(Arc::new(names));
        Ok(())
    }
}

/// Installs and starts a server, or connects to a remote one.
///
/// # Errors
/// It cannot be installed, ends, or does not answer in time.
pub(crate) async fn start(
    launch: &Launch,
    upstream: Upstream,
    place: Option<OwnedSemaphorePermit>,
) -> Result<Running, Error> {
    let began = Instant::now();
    let name = &launch.name;
    let silent = |output: String| Error::Silent { server: name.clone(), after: START_TIMEOUT, output };
    if let Source::Remote { url, headers } = &launch.source {
        let transport = remote::transport(name, url, headers)?;
        let connected = tokio::time::timeout(START_TIMEOUT, upstream.serve(transport)).await;
        let service = connected.map_err(|_| silent(String::new()))?;
        let service = service
            .map_err(|error| Error::Start { server: name.clone(), reason: format!("{url}: {error}") })?;
        return Ok(Running { service, process: None, _place: None });
    }
    let words = tokio::time::timeout(START_TIMEOUT, install::ensure(launch)).await.map_err(|_| {
        Error::Install {
            server: name.clone(),
            step: "installation".to_owned(),
            reason: format!(
                "not done within {} s; install it with mcp-gateway pull when the template is built",
                START_TIMEOUT.as_secs()
            ),
        }
    })??;
    let (process, transport) = spawn::spawn(name, &words, &launch.env)?;
    let started = tokio::time::timeout(
        START_TIMEOUT.saturating_sub(began.elapsed()),
        serve_client(upstream, transport),
    )
    .await;
    let service = match started {
        Ok(Ok(service)) => service,
        Ok(Err(error)) => {
            return Err(Error::Start {
                server: name.clone(),
                reason: process.why_ended(&error.to_string()).await,
            });
        }
        Err(_) => return Err(silent(process.last_words())),
    };
    tracing::info!(server = name, milliseconds = began.elapsed().as_millis(), "started");
    Ok(Running { service, process: Some(process), _place: place })
}

/// Reads all lists of a server.
///
/// # Errors
/// It does not answer, or offers too much.
pub(crate) async fn read_names(server: &str, running: &Running) -> Result<Names, Error> {
    let peer = running.peer();
    let capabilities = running.capabilities();
    let mut names = Names { completions: capabilities.completions.is_some(), ..Names::default() };
    let read = async {
        // Some servers have tools and do not say so.
        names.tools = pages(|page| peer.list_tools(page), |list| (list.tools, list.next_cursor)).await?;
        if capabilities.prompts.is_some() {
            names.prompts =
                pages(|page| peer.list_prompts(page), |list| (list.prompts, list.next_cursor)).await?;
        }
        if capabilities.resources.is_some() {
            names.resources =
                pages(|page| peer.list_resources(page), |list| (list.resources, list.next_cursor)).await?;
            let split = |list: ListResourceTemplatesResult| (list.resource_templates, list.next_cursor);
            names.templates = pages(|page| peer.list_resource_templates(page), split).await?;
        }
        Ok::<(), String>(())
    };
    let failed = |reason: String| Error::Start { server: server.to_owned(), reason };
    match tokio::time::timeout(START_TIMEOUT, read).await {
        Ok(Ok(())) => Ok(names),
        Ok(Err(reason)) => Err(failed(format!("it does not say what it offers: {reason}"))),
        Err(_) => Err(Error::Silent {
            server: server.to_owned(),
            after: START_TIMEOUT,
            output: running.last_words(),
        }),
    }
}

/// Reads a list to its end. A server that does not know the list has nothing of this kind.
async fn pages<T: serde::Serialize, List, Read: Future<Output = Result<List, ServiceError>>>(
    read: impl Fn(Option<PaginatedRequestParams>) -> Read,
    split: impl Fn(List) -> (Vec<T>, Option<String>),
) -> Result<Vec<T>, String> {
    let (mut all, mut bytes, mut cursor) = (Vec::new(), 0, None);
    loop {
        let (items, next) = match read(Some(PaginatedRequestParams::default().with_cursor(cursor))).await {
            Err(ServiceError::McpError(error)) if error.code == rmcp::model::ErrorCode::METHOD_NOT_FOUND => {
                return Ok(all);
            }
            other => split(other.map_err(|error| error.to_string())?),
        };
        bytes +=
            items.iter().map(|item| serde_json::to_vec(item).map_or(0, |json| json.len())).sum::<usize>();
        // An empty page with a successor could go on for ever.
        let endless = items.is_empty() && next.is_some();
        all.extend(items);
        if all.len() > MAX_NAMES || bytes > MAX_LIST_BYTES || endless {
            return Err(format!(
                "its list is longer than {MAX_NAMES} names or {MAX_LIST_BYTES} bytes, or does not end"
            ));
        }
        if next.is_none() {
            return Ok(all);
        }
        cursor = next;
    }
}
