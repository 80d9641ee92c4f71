//! One request of a client, forwarded to its server: progress, cancellation, time limits, and what happens when the server ends.

use std::sync::Arc;

use rmcp::RoleServer;
use rmcp::model::{
    CancelledNotification, CancelledNotificationParam, ClientRequest, ErrorData, GetMeta as _, PingRequest,
    ProgressToken, RequestId, RequestMetaObject, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RequestContext, ServiceError};

use crate::gateway::Gateway;
use crate::limits::{CALL_TIMEOUT, MAX_CALL_TIME, MAX_CALLS, PING_TIMEOUT};
use crate::server::Running;

/// Sends a request to a server and returns its response.
///
/// # Errors
/// What the server says, or why it says nothing.
pub(crate) async fn forward(
    gateway: &Gateway,
    number: usize,
    mut request: ClientRequest,
    context: &RequestContext<RoleServer>,
) -> Result<ServerResult, ErrorData> {
    let server = gateway.server(number);
    let name = &server.launch.name;
    let fail = |reason: String| ErrorData::internal_error(format!("server {name}: {reason}"), None);
    let _call =
        server.calls.try_acquire().map_err(|_| fail(format!("it works on {MAX_CALLS} requests already")))?;
    let running = tokio::select! {
        running = gateway.running(number) => running.map_err(|error| ErrorData::internal_error(error.to_string(), None))?,
        () = context.ct.cancelled() => return Err(fail("cancelled".to_owned())),
    };
    *request.get_meta_mut() = own_meta(&context.meta);
    match send(&running, request, context).await {
        Ok(result) => Ok(result),
        Err(ServiceError::McpError(error)) => Err(error),
        Err(ServiceError::Timeout { .. }) => {
            let alive = tokio::time::timeout(
                PING_TIMEOUT,
                running.peer().send_request(ClientRequest::PingRequest(PingRequest::default())),
            );
            if !matches!(alive.await, Ok(Ok(_) | Err(ServiceError::McpError(_)))) {
                server.kill(&running).await;
            }
            Err(fail(format!("neither a response nor progress within {} s", CALL_TIMEOUT.as_secs())))
        }
        Err(ServiceError::TransportClosed | ServiceError::TransportSend(_)) => Err(fail(format!(
            "it ended before it answered; the next call starts it again. {}",
            running.last_words()
        ))),
        Err(error) => Err(fail(error.to_string())),
    }
}

async fn send(
    running: &Arc<Running>,
    request: ClientRequest,
    context: &RequestContext<RoleServer>,
) -> Result<ServerResult, ServiceError> {
    let options = PeerRequestOptions::with_timeout(CALL_TIMEOUT)
        .reset_timeout_on_progress()
        .with_max_total_timeout(MAX_CALL_TIME);
    let waiting = &running.upstream().waiting;
    // Held while it is sent: progress must not arrive before it is known whom it is for.
    let mut held = waiting.lock().await;
    let handle = running.peer().send_request_with_option(request, options).await?;
    let mut call = Call { running, id: Some(handle.id.clone()), token: handle.progress_token.clone() };
    if let Some(token) = context.meta.get_progress_token() {
        held.insert(handle.progress_token.clone(), (context.peer.clone(), token));
    }
    drop(held);
    tokio::select! {
        result = handle.await_response() => {
            call.id = None;
            result
        }
        () = context.ct.cancelled() => Err(ServiceError::Cancelled { reason: None }),
    }
}

/// A call that a server works on. When it is dropped before its response, because the client cancelled it or went away, the server hears of it.
struct Call<'a> {
    running: &'a Arc<Running>,
    id: Option<RequestId>,
    token: ProgressToken,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let (running, token, id) = (self.running.clone(), self.token.clone(), self.id.take());
        tokio::spawn(async move {
            running.upstream().waiting.lock().await.remove(&token);
            let Some(id) = id else { return };
            let cancelled = CancelledNotification::new(CancelledNotificationParam::new(
                Some(id),
                Some("the client cancelled it".to_owned()),
            ));
            let _ =
                tokio::time::timeout(PING_TIMEOUT, running.peer().send_notification(cancelled.into())).await;
        });
    }
}

/// Metadata of a request without what belongs to the connection that it came from.
fn own_meta(meta: &RequestMetaObject) -> RequestMetaObject {
    let Ok(serde_json::Value::Object(mut members)) = serde_json::to_value(meta) else {
        return RequestMetaObject::default();
    };
    members.retain(|key, _| key != "progressToken" && !key.starts_with("io.modelcontextprotocol/"));
    serde_json::from_value(members.into()).unwrap_or_default()
}
