//! What a service manager is told, and what it gives: readiness, the watchdog, sockets that it listens on for the server.
//! `man 3 sd_notify`, `man 3 sd_listen_fds`. Without one, all of it does nothing.

use std::net::TcpListener;

use sd_notify::NotifyState;
use tracing::warn;

use crate::failure::Failure;

/// Name of a socket that is to be served with TLS; any other one is served without (`FileDescriptorName=` of a socket unit).
const TLS_NAME: &str = "https";

/// The sockets that the service manager listens on.
#[derive(Debug, Default)]
pub(super) struct ServiceSockets {
    /// In place of `--listen`.
    pub(super) plain: Option<tokio::net::TcpListener>,
    /// In place of `--tls-listen`.
    pub(super) tls: Option<tokio::net::TcpListener>,
}

/// Takes over the sockets of the service manager.
///
/// # Errors
/// There are more than one with and one without TLS, or one is no listening socket.
pub(super) fn sockets() -> Result<ServiceSockets, Failure> {
    let mut sockets = ServiceSockets::default();
    for (descriptor, name) in sd_notify::listen_fds_with_names()? {
        let socket = TcpListener::from(sys::adopt_descriptor(descriptor)?);
        socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(socket)
            .map_err(|error| Failure::new(format!("the socket {name} of the service manager: {error}")))?;
        let place = if name == TLS_NAME { &mut sockets.tls } else { &mut sockets.plain };
        if place.replace(socket).is_some() {
            return Err(Failure::new(format!(
                "the service manager gives two sockets to listen on: name the one with TLS {TLS_NAME}"
            )));
        }
    }
    Ok(sockets)
}

/// Tells the service manager a state.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "the service manager cannot be told of this server's state");
    }
}

/// Tells the service manager regularly that the server is alive, if it asks for that. The task is one of all others': where they stand
/// still, it does as well.
pub(super) fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(limit / 3);
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}
