//! The gateway as a client of a server: passes its progress to the client that waits for it, and notices when its lists change.

#![expect(deprecated, reason = "servers of older protocol versions send log messages")]

use std::collections::HashMap;
use std::sync::Arc;

use rmcp::model::{
    ClientCapabilities, ClientConfig, Implementation, LoggingMessageNotificationParam,
    ProgressNotificationParam, ProgressToken,
};
use rmcp::service::{NotificationContext, Peer};
use rmcp::{ClientHandler, RoleClient, RoleServer};

use crate::gateway::Changes;

/// Who waits for progress: the client, and its own token.
type Waiting = HashMap<ProgressToken, (Peer<RoleServer>, ProgressToken)>;

/// The handler of one server's messages.
pub(crate) struct Upstream {
    number: usize,
    server: String,
    changes: Arc<Changes>,
    /// By the token that the gateway gave to the server. An entry lives as long as its call, and calls are limited.
    pub(crate) waiting: Arc<tokio::sync::Mutex<Waiting>>,
}

impl Upstream {
    pub(crate) fn new(number: usize, server: String, changes: Arc<Changes>) -> Self {
        Self { number, server, changes, waiting: Arc::default() }
    }
}

// Sampling, roots and elicitation are not offered to servers: which client should answer is not known.
impl ClientHandler for Upstream {
    async fn on_progress(&self, mut progress: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let waiting = self.waiting.lock().await.get(&progress.progress_token).cloned();
        if let Some((client, token)) = waiting {
            progress.progress_token = token;
            let _ = client.notify_progress(progress).await;
        }
    }

    async fn on_logging_message(
        &self,
        message: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let text: String = message.data.to_string().chars().take(2000).collect();
        tracing::info!(server = self.server, "{text}");
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changes.mark(self.number);
    }

    async fn on_prompt_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changes.mark(self.number);
    }

    async fn on_resource_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changes.mark(self.number);
    }

    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("cofferdam-mcp-gateway", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
    }
}
