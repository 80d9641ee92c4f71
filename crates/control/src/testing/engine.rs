//! [`TestEngine`]: an engine whose sandboxes are loopback listeners in this process. Like real ones they outlive the control plane
//! that started them. Tests can make a start fail or hang, or have envd not answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Capabilities, Descriptor, Durability, EgressPolicy, Engine, EngineError, ExitReason, Isolation,
    RestoreMode, Sandbox, SnapshotInfo, StartSpec, Stats, TemplateImage,
};
use ids::{SandboxId, SnapshotId, TeamId};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::guest;

/// A port on which every test sandbox serves the same pages as on envd's.
pub const APP_PORT: u16 = 8000;

/// An engine for tests.
pub struct TestEngine {
    descriptor: Descriptor,
    sandboxes: Mutex<HashMap<SandboxId, Arc<TestSandbox>>>,
    /// The result of the next start.
    fail_next: Mutex<Option<EngineError>>,
    /// Whether the envd of newly started sandboxes never answers.
    pub silent_envd: AtomicBool,
    /// Each start takes a permit and keeps it; there are many by default.
    pub gate: Semaphore,
    /// Number of starts that have reached the gate.
    pub starting: AtomicUsize,
    /// Notified when a start reaches the gate.
    pub at_gate: Notify,
    /// Sandboxes that `sweep` had to keep.
    pub kept: Mutex<Vec<SandboxId>>,
    /// The snapshots.
    pub states: Arc<States>,
    /// Notified to simulate scarce memory.
    pub scarcity: Notify,
}

/// A sandbox of the test engine.
pub struct TestSandbox {
    id: SandboxId,
    /// The spec that it was started with.
    pub spec: StartSpec,
    ports: Mutex<HashMap<u16, SocketAddr>>,
    servers: Mutex<Vec<AbortOnDropHandle<()>>>,
    exit: watch::Sender<Option<ExitReason>>,
    pub(super) guest: Arc<guest::Guest>,
    egress: Mutex<EgressPolicy>,
    /// Whether it is frozen.
    pub frozen: AtomicBool,
    states: Arc<States>,
}

/// Snapshots, and what tests control about captures and kills.
#[derive(Default)]
pub struct States {
    /// Whether each snapshot has memory, by id.
    pub kept: Mutex<HashMap<SnapshotId, bool>>,
    /// The result of the next capture.
    pub fail_next: Mutex<Option<EngineError>>,
    /// Whether every capture with memory fails.
    pub memory_fails: AtomicBool,
    /// Whether every capture fails.
    pub capture_fails: AtomicBool,
    /// Number of captures that were begun.
    pub captures: AtomicUsize,
    /// Whether kills fail, until the sandbox ends in another way.
    pub undying: AtomicBool,
    /// Kills wait for this lock.
    pub ends: tokio::sync::Mutex<()>,
    /// Notified when a kill begins.
    pub at_end: Notify,
    /// Processor time of each sandbox, microseconds; 0 means that the engine has no accounting.
    pub processor: AtomicU64,
}

impl TestEngine {
    /// An engine without sandboxes.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            descriptor: Descriptor {
                name: "test",
                isolation: Isolation::SharedKernel,
                summary: "loopback listeners in one process: no isolation at all".to_owned(),
                capabilities: Capabilities { memory_snapshots: true, ..Capabilities::default() },
            },
            sandboxes: Mutex::default(),
            fail_next: Mutex::default(),
            silent_envd: AtomicBool::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            starting: AtomicUsize::new(0),
            at_gate: Notify::new(),
            kept: Mutex::default(),
            states: Arc::default(),
            scarcity: Notify::new(),
        })
    }

    /// Returns a sandbox that it started, alive or not.
    ///
    /// # Panics
    /// When another test thread panicked.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> Option<Arc<TestSandbox>> {
        self.sandboxes.lock().get(id).cloned()
    }

    /// Returns how many of its sandboxes are alive.
    ///
    /// # Panics
    /// When another test thread panicked.
    #[must_use]
    pub fn alive(&self) -> usize {
        let sandboxes = self.sandboxes.lock();
        sandboxes.values().filter(|sandbox| sandbox.exit.borrow().is_none()).count()
    }

    /// Ends all of its sandboxes as if their PID 1 had exited.
    ///
    /// # Panics
    /// When another test thread panicked.
    pub fn end_all(&self, reason: &ExitReason) {
        let sandboxes: Vec<_> = self.sandboxes.lock().values().cloned().collect();
        sandboxes.iter().for_each(|sandbox| sandbox.die(reason.clone()));
    }

    /// Makes the next start fail.
    ///
    /// # Panics
    /// When another test thread panicked.
    pub fn fail_next(&self, error: EngineError) {
        *self.fail_next.lock() = Some(error);
    }
}

#[async_trait]
impl Engine for TestEngine {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    async fn prepare(&self, template: &TemplateImage, _recurring: bool) -> Result<(), EngineError> {
        if template.layers.is_empty() {
            return Err(EngineError::Template("it has no layers".to_owned()));
        }
        Ok(())
    }

    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError> {
        self.starting.fetch_add(1, Ordering::SeqCst);
        self.at_gate.notify_one();
        self.gate.acquire().await.expect("the gate is never closed").forget();
        if let Some(error) = self.fail_next.lock().take() {
            return Err(error);
        }
        // Both would use the same files.
        if self.sandbox(&spec.id).is_some_and(|former| former.exit.borrow().is_none()) {
            return Err(EngineError::Restore("there is one with this id".to_owned()));
        }
        let sandbox =
            TestSandbox::start(spec, self.silent_envd.load(Ordering::SeqCst), Arc::clone(&self.states))
                .await
                .map_err(EngineError::kernel("listen on loopback"))?;
        let mut sandboxes = self.sandboxes.lock();
        sandboxes.insert(sandbox.id.clone(), Arc::clone(&sandbox));
        Ok(sandbox)
    }

    async fn restore(
        &self,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError> {
        let memory = self.states.kept.lock().get(&snapshot).copied();
        if !memory.is_some_and(|memory| memory || restore_mode == RestoreMode::Disk) {
            return Err(EngineError::NotFound);
        }
        self.start(spec).await
    }

    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        self.states.kept.lock().remove(&snapshot);
        Ok(())
    }

    async fn memory_pressure(&self) {
        self.scarcity.notified().await;
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        let sandbox = self.sandbox(id).filter(|sandbox| sandbox.exit.borrow().is_none());
        Ok(sandbox.ok_or(EngineError::NotFound)?)
    }

    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
        self.states.kept.lock().retain(|id, _| snapshots.contains(id));
        *self.kept.lock() = keep.to_vec();
        let sandboxes = self.sandboxes.lock();
        let lost: Vec<_> = sandboxes
            .values()
            .filter(|sandbox| sandbox.exit.borrow().is_none() && !keep.contains(&sandbox.id))
            .collect();
        lost.iter().for_each(|sandbox| sandbox.die(ExitReason::Signalled(9)));
        Ok(lost.len())
    }

    async fn shutdown(&self) {}
}

impl TestSandbox {
    async fn start(spec: StartSpec, silent: bool, states: Arc<States>) -> std::io::Result<Arc<Self>> {
        let sandbox = Arc::new(Self {
            id: spec.id.clone(),
            egress: Mutex::new(spec.egress.clone()),
            spec,
            ports: Mutex::default(),
            servers: Mutex::default(),
            exit: watch::Sender::new(None),
            guest: Arc::default(),
            frozen: AtomicBool::new(false),
            states,
        });
        for port in [envd_api::PORT, APP_PORT] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            sandbox.ports.lock().insert(port, listener.local_addr()?);
            let guest = Arc::clone(&sandbox.guest);
            let server = tokio::spawn(guest::serve(listener, guest, silent && port == envd_api::PORT));
            sandbox.servers.lock().push(AbortOnDropHandle::new(server));
        }
        Ok(sandbox)
    }

    /// Connects a port of the sandbox to a listener of the test.
    ///
    /// # Panics
    /// When another test thread panicked.
    pub fn open_port(&self, port: u16, address: SocketAddr) {
        self.ports.lock().insert(port, address);
    }

    /// Ends as if PID 1 had exited: closes every socket, then reports the exit.
    ///
    /// # Panics
    /// When another test thread panicked.
    pub fn die(&self, reason: ExitReason) {
        self.servers.lock().clear();
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(reason);
            }
            first
        });
    }

    /// Returns the body of the last `POST /init`.
    ///
    /// # Panics
    /// When another test thread panicked.
    #[must_use]
    pub fn init(&self) -> Option<serde_json::Value> {
        self.guest.init.lock().clone()
    }

    /// Sends a chunk to all readers of `/ticks`.
    pub fn tick(&self, piece: &'static str) {
        // There may be no reader.
        let _ = self.guest.ticks.send(piece);
    }

    /// Returns the number of requests to `/ticks`, as it changes.
    #[must_use]
    pub fn readers(&self) -> watch::Receiver<usize> {
        self.guest.readers.subscribe()
    }

    /// Returns the number of connections that its servers have accepted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.guest.accepted.load(Ordering::SeqCst)
    }

    /// Returns the current egress policy.
    ///
    /// # Panics
    /// When another test thread panicked.
    #[must_use]
    pub fn egress(&self) -> EgressPolicy {
        self.egress.lock().clone()
    }
}

#[async_trait]
impl Sandbox for TestSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    async fn dial(&self, port: u16) -> std::io::Result<TcpStream> {
        if self.exit.borrow().is_some() {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        let address = self.ports.lock().get(&port).copied();
        TcpStream::connect(address.ok_or(std::io::ErrorKind::ConnectionRefused)?).await
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn capture(
        &self,
        snapshot: SnapshotId,
        memory: bool,
        _durability: Durability,
    ) -> Result<SnapshotInfo, EngineError> {
        if let Some(error) = self.states.fail_next.lock().take() {
            return Err(error);
        }
        self.states.captures.fetch_add(1, Ordering::SeqCst);
        let fails = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        if fails(&self.states.capture_fails) || memory && fails(&self.states.memory_fails) {
            return Err(EngineError::Capture("a landlock descriptor".to_owned()));
        }
        self.states.kept.lock().insert(snapshot, memory);
        Ok(SnapshotInfo { memory, memory_bytes: 0, stopped: Duration::ZERO })
    }

    async fn export_layer(&self, target: &Path) -> Result<(), EngineError> {
        std::fs::create_dir(target).map_err(|error| EngineError::Capture(error.to_string()))
    }

    async fn stats(&self) -> Result<Stats, EngineError> {
        let cpu_usec = self.states.processor.load(Ordering::SeqCst);
        let memory_limit_bytes = u64::from(cpu_usec > 0) << 30;
        Ok(Stats { cpu_usec, memory_limit_bytes, ..Stats::default() })
    }

    fn set_egress(&self, policy: EgressPolicy) {
        *self.egress.lock() = policy;
    }

    fn set_team(&self, _team: TeamId) {}

    async fn kill(&self) -> Result<(), EngineError> {
        self.states.at_end.notify_one();
        let _turn = self.states.ends.lock().await;
        if self.states.undying.load(Ordering::SeqCst) && self.exit.borrow().is_none() {
            return Err(EngineError::Timeout("ending the sandbox"));
        }
        self.die(ExitReason::Signalled(9));
        Ok(())
    }

    async fn released(&self) {
        let _ = self.exit.subscribe().wait_for(Option::is_some).await;
    }

    fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.subscribe()
    }

    fn private_dir(&self) -> PathBuf {
        PathBuf::from("/nowhere")
    }
}

/// Number of chunks that a slow reader may be behind.
pub(super) const TICKS: usize = 64;

pub(super) fn tick_channel() -> broadcast::Sender<&'static str> {
    broadcast::Sender::new(TICKS)
}
