//! Accepts connections and serves HTTP/1.1 on them.
//! There is no idle timeout: clients keep connections for minutes and expect them to stay open.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::auth::Peer;
use crate::router::Router;
use crate::state::Envd;

/// Size of the read buffer. Uploads are fastest if it holds what a socket's buffer holds.
const BUFFER: usize = 256 * 1024;

/// Serves connections; never returns. Those from the address `server` are trusted; without it, none is trusted more than others.
pub async fn run(envd: Arc<Envd>, listener: TcpListener, server: Option<IpAddr>) {
    let router = Router::new(envd);
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                tokio::spawn(serve(router.clone(), stream, Peer::of(address, server)));
            }
            // The client has gone already.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            // Out of descriptors or memory: nothing reports when they are available again.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve(router: Router, stream: TcpStream, peer: Peer) {
    // Events are small and must go out at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let mut router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(router.handle(request, peer).await) }
    });
    // Errors of a connection need no handling: the client has gone.
    let _ = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
