//! Finds sandboxes by id, for their owners and for the data plane, and returns the data that is needed to connect to them.

use std::sync::Arc;

use ids::{SandboxId, TeamId};

use super::{AnySandbox, RunningSandbox, SandboxInfo};
use crate::{Control, ControlError};

/// A sandbox with the tokens that its owner needs to talk to it.
#[derive(Debug, Clone)]
pub struct Access {
    /// The sandbox.
    pub info: SandboxInfo,
    /// Token for envd.
    pub envd_token: String,
    /// Token for its ports, if they are not public.
    pub traffic_token: Option<String>,
}

impl Control {
    /// Returns the running sandbox with this id, whichever team owns it: for the data plane, which checks tokens instead.
    #[must_use]
    pub fn find_running(&self, id: &SandboxId) -> Option<Arc<RunningSandbox>> {
        self.registry.running(id)
    }

    /// Returns a team's running sandbox.
    ///
    /// # Errors
    /// [`ControlError::SandboxNotFound`], also when it is another team's.
    pub fn running_sandbox(&self, team: TeamId, id: &SandboxId) -> Result<Arc<RunningSandbox>, ControlError> {
        let running = self.registry.running(id).filter(|running| running.team == team);
        running.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))
    }

    /// Returns a team's sandbox, running or paused.
    pub(crate) fn any_sandbox(&self, team: TeamId, id: &SandboxId) -> Result<AnySandbox, ControlError> {
        let sandbox = self.registry.get(id).filter(|sandbox| sandbox.team() == team);
        sandbox.ok_or_else(|| ControlError::SandboxNotFound(id.clone()))
    }

    /// Connects to a TCP port inside a sandbox.
    ///
    /// # Errors
    /// `NotConnected` when there is no such running sandbox, `ConnectionRefused` when nothing listens there.
    pub async fn dial(&self, id: &SandboxId, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        let running = self.registry.running(id).ok_or(std::io::ErrorKind::NotConnected)?;
        running.dial(port).await
    }

    /// Returns the token that clients need to reach a sandbox's envd. It must never enter a sandbox.
    #[must_use]
    pub fn envd_token(&self, id: &SandboxId) -> String {
        self.tokens.envd(id)
    }

    /// Returns the token that stands for the envd token inside a sandbox, and is worth nothing outside.
    #[must_use]
    pub fn inner_token(&self, id: &SandboxId) -> String {
        self.tokens.inner(id)
    }

    /// Returns the token that the ports of a sandbox without public traffic expect.
    #[must_use]
    pub fn traffic_token(&self, id: &SandboxId) -> String {
        self.tokens.traffic(id)
    }

    /// Returns a team's sandbox, running or paused, with its tokens.
    ///
    /// # Errors
    /// [`ControlError::SandboxNotFound`].
    pub fn get(&self, team: TeamId, id: &SandboxId) -> Result<Access, ControlError> {
        Ok(self.access_to(self.any_sandbox(team, id)?.info()))
    }

    pub(super) fn access_to(&self, info: SandboxInfo) -> Access {
        let public = info.details.network.as_ref().and_then(|network| network.allow_public_traffic);
        Access {
            envd_token: self.tokens.envd(&info.id),
            traffic_token: (public == Some(false)).then(|| self.tokens.traffic(&info.id)),
            info,
        }
    }
}
