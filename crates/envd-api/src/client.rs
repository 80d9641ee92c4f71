//! A transport for the generated clients over one HTTP/1.1 connection that the caller opened.

use std::sync::Arc;

use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;

/// Sends RPCs over one HTTP/1.1 connection, one after the other. The caller drives the connection, and so decides when
/// it ends.
#[derive(Debug, Clone)]
pub struct ConnectionTransport(Arc<Mutex<SendRequest<ClientBody>>>);

impl ConnectionTransport {
    /// A transport over the sending half of a connection.
    #[must_use]
    pub fn new(sender: SendRequest<ClientBody>) -> Self {
        Self(Arc::new(Mutex::new(sender)))
    }
}

impl ClientTransport for ConnectionTransport {
    type ResponseBody = Incoming;
    type Error = hyper::Error;

    fn send(
        &self,
        mut request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<Incoming>, hyper::Error>> {
        // Connections, unlike connection pools, send the request as it is: its target has to be in origin form.
        let host = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        if let Some(host) = host {
            request.headers_mut().entry(HOST).or_insert(host);
        }
        if let Some(target) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = Uri::from(target);
        }
        Box::pin(self.0.lock().send_request(request))
    }
}
