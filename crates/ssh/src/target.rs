//! The sandbox that a client has logged in to.

use std::sync::Arc;

use cofferdam_client::Sandbox;
use control::RunningSandbox;
use ids::{SandboxId, TeamId};
use store::Standing;

use crate::Shared;

/// A sandbox whose team the client belongs to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: SandboxId,
}

impl Target {
    /// Returns the sandbox with this id if it is a team's, and the team may use it.
    pub(crate) fn find(shared: &Arc<Shared>, team: TeamId, user: &str) -> Option<Self> {
        let id: SandboxId = user.parse().ok()?;
        shared.control.team(team).filter(|team| team.standing == Standing::Good)?;
        shared.control.get(team, &id).ok()?;
        Some(Self { shared: Arc::clone(shared), id })
    }

    /// Returns the running sandbox, and resumes it if it is paused and wakes for traffic.
    ///
    /// # Errors
    /// A sentence for the client.
    pub(crate) async fn running(&self) -> Result<Arc<RunningSandbox>, String> {
        let control = &self.shared.control;
        if let Some(running) = control.find_running(&self.id) {
            return Ok(running);
        }
        let Some(paused) = control.find_wakeable(&self.id) else {
            return Err(format!(
                "sandbox {} is paused and is not resumed by traffic, or has ended; resume it first",
                self.id
            ));
        };
        control.wake(paused).await.map_err(|error| format!("sandbox {} cannot be resumed: {error}", self.id))
    }

    /// Returns what starts processes in the sandbox, which runs then.
    ///
    /// # Errors
    /// A sentence for the client.
    pub(crate) async fn processes(&self) -> Result<Sandbox, String> {
        self.running().await?;
        let token = self.shared.control.envd_token(&self.id);
        Sandbox::attach(&self.shared.client, self.id.as_str(), &token).map_err(|error| error.to_string())
    }
}
