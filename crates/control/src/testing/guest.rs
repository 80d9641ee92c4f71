//! The HTTP/1.1 server inside a test sandbox: a small part of envd's REST, and pages that show what a proxy did. `/echo` returns the
//! body, `/request` describes the request, `/ticks` streams on command, `/upgrade` echoes raw bytes, `/big` is large.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use envd_api::{headers, paths};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use super::engine::tick_channel;

type GuestBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// State of one sandbox's server.
pub(super) struct Guest {
    pub(super) init: Mutex<Option<serde_json::Value>>,
    pub(super) ticks: broadcast::Sender<&'static str>,
    pub(super) readers: watch::Sender<usize>,
    pub(super) accepted: AtomicUsize,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            init: Mutex::default(),
            ticks: tick_channel(),
            readers: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
        }
    }
}

/// Serves until it is dropped, which closes every connection.
pub(super) async fn serve(listener: TcpListener, guest: Arc<Guest>, silent: bool) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        if silent {
            connections.spawn(async move {
                std::future::pending::<()>().await;
                drop(stream);
            });
            continue;
        }
        guest.accepted.fetch_add(1, Ordering::SeqCst);
        let guest = Arc::clone(&guest);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&guest)));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Tests break connections on purpose.
            let _ = connection.with_upgrades().await;
        });
    }
}

async fn answer(request: Request<Incoming>, guest: Arc<Guest>) -> Result<Response<GuestBody>, hyper::Error> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, paths::HEALTH) => empty(StatusCode::NO_CONTENT),
        (&Method::POST, paths::INIT) => {
            let body = request.into_body().collect().await?.to_bytes();
            *guest.init.lock() = serde_json::from_slice(&body).ok();
            let mut answer = empty(StatusCode::NO_CONTENT);
            answer.headers_mut().insert(headers::RESEEDED, http::HeaderValue::from_static("true"));
            answer
        }
        (&Method::GET, paths::METRICS) => text(
            r#"{"ts":1700000000,"cpu_count":2,"cpu_used_pct":12.5,"mem_total":1000,"mem_used":100,"mem_cache":10,
               "disk_used":5,"disk_total":50}"#,
        ),
        (_, "/request") => describe(&request),
        (_, "/echo") => Response::new(UnsyncBoxBody::new(request.into_body())),
        (_, "/ticks") => {
            let ticks = Ticks::new(guest.ticks.subscribe());
            guest.readers.send_modify(|readers| *readers += 1);
            Response::new(UnsyncBoxBody::new(ticks.map_err(|never| match never {})))
        }
        (_, "/upgrade") => upgrade(request),
        (_, "/big") => Response::new(UnsyncBoxBody::new(full(vec![b'x'; 64 << 20]))),
        _ => empty(StatusCode::NOT_FOUND),
    })
}

fn full(body: impl Into<Bytes>) -> impl Body<Data = Bytes, Error = hyper::Error> {
    Full::new(body.into()).map_err(|never| match never {})
}

fn empty(status: StatusCode) -> Response<GuestBody> {
    let mut response = text("");
    *response.status_mut() = status;
    response
}

fn text(body: impl Into<Bytes> + 'static) -> Response<GuestBody> {
    Response::new(UnsyncBoxBody::new(full(body)))
}

/// Describes the request as JSON: method, target and headers in lower case.
fn describe(request: &Request<Incoming>) -> Response<GuestBody> {
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in request.headers() {
        headers.entry(name.as_str()).or_default().push(value.to_str().unwrap_or("?"));
    }
    let json = serde_json::json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": headers,
    });
    text(json.to_string())
}

/// Switches protocols and echoes all bytes.
fn upgrade(mut request: Request<Incoming>) -> Response<GuestBody> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        // Ends when the client closes the connection.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let protocol = request.headers().get(header::UPGRADE).cloned();
    response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    response
}

/// A body without end whose chunks the test sends.
struct Ticks {
    pieces: mpsc::Receiver<&'static str>,
}

impl Ticks {
    fn new(mut ticks: broadcast::Receiver<&'static str>) -> Self {
        let (sender, pieces) = mpsc::channel(super::engine::TICKS);
        tokio::spawn(async move {
            while let Ok(piece) = ticks.recv().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Self { pieces }
    }
}

impl Body for Ticks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
