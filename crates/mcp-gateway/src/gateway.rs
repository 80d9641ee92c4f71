//! All servers of a gateway: which one a tool, prompt or resource belongs to, and how many run.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rmcp::RoleServer;
use rmcp::service::Peer;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::error::Error;
use crate::index::Index;
use crate::launch::Launch;
use crate::limits::{MAX_RUNNING, MAX_SESSIONS, MAX_STARTING, READY_TIMEOUT, START_TIMEOUT};
use crate::server::{Running, Server};

/// The servers, and what they offer together.
pub(crate) struct Gateway {
    servers: Vec<Arc<Server>>,
    index: RwLock<Arc<Index>>,
    /// A place for each server that may run.
    places: Arc<Semaphore>,
    changes: Arc<Changes>,
    /// Clients with a session, which are told when lists change.
    clients: Mutex<Vec<Peer<RoleServer>>>,
    /// Increases when lists change.
    generation: watch::Sender<u64>,
}

/// Servers whose lists must be read again.
#[derive(Default)]
pub(crate) struct Changes {
    servers: Mutex<BTreeSet<usize>>,
    notify: Notify,
}

impl Changes {
    /// Has a server's lists read again soon.
    pub(crate) fn mark(&self, server: usize) {
        self.servers.lock().insert(server);
        self.notify.notify_one();
    }
}

impl Gateway {
    /// Starts every server once, so that a server that does not work is refused now and its names are known.
    ///
    /// # Errors
    /// A server does not start, or all of them take too long.
    pub(crate) async fn start(launches: Vec<Launch>) -> Result<Arc<Self>, Error> {
        let changes = Arc::new(Changes::default());
        let number = |(number, launch)| Arc::new(Server::new(number, launch, changes.clone()));
        let gateway = Arc::new(Self {
            servers: launches.into_iter().enumerate().map(number).collect(),
            index: RwLock::default(),
            places: Arc::new(Semaphore::new(MAX_RUNNING)),
            changes,
            clients: Mutex::default(),
            generation: watch::Sender::new(0),
        });
        let first = gateway.clone().start_all();
        tokio::time::timeout(READY_TIMEOUT, first).await.map_err(|_| gateway.late())??;
        gateway.rebuild();
        // Weak, or the task would keep the gateway of a failed start.
        let weak = Arc::downgrade(&gateway);
        let changes = gateway.changes.clone();
        tokio::spawn(async move {
            loop {
                changes.notify.notified().await;
                let Some(gateway) = weak.upgrade() else { return };
                gateway.refresh().await;
            }
        });
        Ok(gateway)
    }

    async fn start_all(self: Arc<Self>) -> Result<(), Error> {
        let turns = Arc::new(Semaphore::new(MAX_STARTING));
        let mut starts = tokio::task::JoinSet::new();
        for server in self.servers.clone() {
            let (gateway, turns) = (self.clone(), turns.clone());
            starts.spawn(async move {
                let _turn = turns.acquire().await;
                server.running(&gateway).await?;
                server.read_names(&gateway).await
            });
        }
        while let Some(done) = starts.join_next().await {
            done.map_err(|error| Error::Gateway(error.to_string()))??;
        }
        self.changes.servers.lock().clear();
        Ok(())
    }

    fn late(&self) -> Error {
        let silent =
            self.servers.iter().filter(|server| !server.is_ready()).map(|server| server.launch.name.as_str());
        Error::NotReady { servers: silent.collect::<Vec<_>>().join(", "), after: READY_TIMEOUT }
    }

    /// Number of servers.
    pub(crate) fn len(&self) -> usize {
        self.servers.len()
    }

    pub(crate) fn index(&self) -> Arc<Index> {
        self.index.read().clone()
    }

    pub(crate) fn server(&self, number: usize) -> &Arc<Server> {
        &self.servers[number]
    }

    /// Takes a place for a server that is to run; stops the idle server that was used least recently if there is none.
    ///
    /// # Errors
    /// All servers that run are busy.
    pub(crate) async fn place(&self, server: &str) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let idle = self.servers.iter().filter_map(|server| Some((server.idle_since()?, server)));
        if let Some((_, least)) = idle.min_by_key(|(since, _)| *since) {
            tracing::info!(server = least.launch.name, "stops for another server");
            least.stop_idle();
        }
        let place = tokio::time::timeout(START_TIMEOUT, self.places.clone().acquire_owned()).await;
        let busy = || Error::Start {
            server: server.to_owned(),
            reason: format!("{MAX_RUNNING} other servers are busy"),
        };
        place.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// A server that runs; starts it if it does not.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn running(&self, number: usize) -> Result<Arc<Running>, Error> {
        self.servers[number].running(self).await
    }

    /// Remembers a client that wants to know of changes.
    pub(crate) fn add_client(&self, client: Peer<RoleServer>) {
        let mut clients = self.clients.lock();
        clients.retain(|client| !client.is_transport_closed());
        if clients.len() >= MAX_SESSIONS {
            clients.remove(0);
        }
        clients.push(client);
    }

    /// Increases whenever lists change.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    async fn refresh(&self) {
        let changed = std::mem::take(&mut *self.changes.servers.lock());
        for number in changed {
            let server = &self.servers[number];
            // A server that was stopped meanwhile has nothing new to say, and is not started for it.
            if server.is_running()
                && let Err(error) = server.read_names(self).await
            {
                tracing::warn!("{error}");
            }
        }
        self.rebuild();
        self.generation.send_modify(|generation| *generation += 1);
        let clients = self.clients.lock().clone();
        for client in clients {
            // In tasks of their own: a client that does not read must not keep others from hearing.
            tokio::spawn(async move {
                let told = async {
                    let _ = client.notify_tool_list_changed().await;
                    let _ = client.notify_prompt_list_changed().await;
                    let _ = client.notify_resource_list_changed().await;
                };
                let _ = tokio::time::timeout(START_TIMEOUT, told).await;
            });
        }
        // A server that changes its lists all the time is not asked all the time.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }

    fn rebuild(&self) {
        let names = self.servers.iter().map(|server| (server.launch.name.as_str(), server.names()));
        *self.index.write() = Arc::new(Index::build(names));
    }
}
