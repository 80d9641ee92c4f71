//! One connection: who the client is, and which channels it opens.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ids::TeamId;
use russh::keys::HashAlg;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::forward::Listening;
use crate::limits::Place;
use crate::target::Target;
use crate::{Shared, forward, session};

/// Channels of one connection at a time: sessions and forwarded connections.
const MAX_CHANNELS: usize = 64;
/// Ports inside that connections of one client come from.
const MAX_LISTENING: usize = 8;

/// The state of one connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    place: Arc<Place>,
    /// Cancelled at login, which ends the limit of time for it.
    logged_in: CancellationToken,
    target: Option<Target>,
    channels: Arc<Semaphore>,
    /// Channels whose program has been named: there is one for each.
    started: HashSet<ChannelId>,
    /// Ports inside that connections come from, by the address that the client asked for.
    listening: HashMap<(String, u32), Listening>,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, place: Arc<Place>, logged_in: CancellationToken) -> Self {
        let channels = Arc::new(Semaphore::new(MAX_CHANNELS));
        Self {
            shared,
            place,
            logged_in,
            target: None,
            channels,
            started: HashSet::new(),
            listening: HashMap::new(),
        }
    }

    /// The sandbox with this name among those of the teams that have a key.
    fn by_key(&self, user: &str, key: &russh::keys::PublicKey) -> Option<Target> {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let teams: Vec<TeamId> = self.shared.control.ssh_keys().teams_with(&fingerprint);
        teams.into_iter().find_map(|team| Target::find(&self.shared, team, user))
    }

    fn log_in(&mut self, target: Target, method: &str) -> Auth {
        info!(sandbox_id = %target.id, method, "SSH login");
        self.place.log_in();
        self.logged_in.cancel();
        self.target = Some(target);
        Auth::Accept
    }

    fn refuse(&self) -> Auth {
        self.place.refuse();
        Auth::reject()
    }

    /// Takes a place for a channel of a client that is logged in.
    fn open(&self) -> Option<(Target, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.channels).try_acquire_owned().ok()?;
        Some((self.target.clone()?, permit))
    }

    /// Answers a request that names a channel's program.
    fn start(
        &mut self,
        channel: ChannelId,
        is_served: bool,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let is_open = self.started.len() < MAX_CHANNELS;
        reply(is_served && is_open && self.started.insert(channel), channel, session)
    }
}

/// Answers a request, if the client wants that.
fn reply(granted: bool, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
    if granted { session.channel_success(channel) } else { session.channel_failure(channel) }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        let team = self.shared.control.authenticate(password).await.ok();
        match team.and_then(|(team, _)| Target::find(&self.shared, team.id, user)) {
            Some(target) => Ok(self.log_in(target, "API key")),
            None => Ok(self.refuse()),
        }
    }

    /// Without this check, a client would be asked to sign for keys that are of no use, each perhaps with a touch of a hardware key.
    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(if self.by_key(user, offer.public_key).is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        match self.by_key(user, key.public_key) {
            Some(target) => Ok(self.log_in(target, "public key")),
            None => Ok(self.refuse()),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some((target, permit)) = self.open() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        let handle = session.handle();
        tokio::spawn(async move {
            session::run(target, channel, handle).await;
            drop(permit);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let (Some((target, permit)), Ok(port)) = (self.open(), u16::try_from(port)) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let host = host.to_owned();
        tokio::spawn(async move {
            forward::run(target, channel, reply, &host, port).await;
            drop(permit);
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply(true, channel, session)
    }

    /// The client's display is not for code in sandboxes, nor is its agent, which is refused if there is no handler.
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply(false, channel, session)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply(session::may_set(name, value), channel, session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.start(channel, true, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, true, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, name == session::SFTP, session)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let (Some(target), Ok(wanted)) = (self.target.clone(), u16::try_from(*port)) else {
            return Ok(false);
        };
        if self.listening.len() >= MAX_LISTENING {
            return Ok(false);
        }
        match forward::listen(target, session.handle(), Arc::clone(&self.channels), address, wanted).await {
            Ok(listening) => {
                *port = listening.port.into();
                self.listening.insert((address.to_owned(), *port), listening);
                Ok(true)
            }
            Err(reason) => {
                debug!(reason, "a port inside is not forwarded");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listening.remove(&(address.to_owned(), port)).is_some())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.started.remove(&channel);
        Ok(())
    }
}
