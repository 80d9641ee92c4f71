//! Accepts connections and serves HTTP/1.1 on them, for as long as the clients keep them.
//! There is no idle timeout: clients keep connections for minutes and expect to find them open.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::router::Router;
use crate::state::Envd;

/// A read at most fills this; uploads are fastest with room for what a socket holds.
const BUFFER: usize = 256 * 1024;

/// Serves for ever.
pub async fn run(envd: Arc<Envd>, listener: TcpListener) {
    let router = Router::new(envd);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(router.clone(), stream));
            }
            // The client left already.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            // Out of descriptors or memory: nothing tells when there will be some again.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve(router: Router, stream: TcpStream) {
    // Events are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let mut router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(router.handle(request).await) }
    });
    // How a connection ends is of no interest: its requests have been answered or nobody waits for them.
    let _ = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
