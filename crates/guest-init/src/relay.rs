//! The relay: connects the host to services on `::1`, and sends what user code has changed as a
//! layer.
//!
//! Only connections from the host's end of the link are served. Each has threads of its own, which
//! spend most of their life copying; their number is limited. Threads instead of an event loop:
//! there are few.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use guest_api::network::{GUEST_V4, HOST_V4};
use guest_api::relay::{MAX_LINE, OK, REFUSED, RELAY_PORT, RelayRequest};

use crate::boot::UPPER;
use crate::error::InitError;

/// Maximum number of connections at once; more are closed.
const MAX_CONNECTIONS: usize = 128;
/// Time limit for the first line, and for connecting to a service.
const TIMEOUT: Duration = Duration::from_secs(5);
const STACK: usize = 128 << 10;

/// Starts to listen, on a thread.
///
/// # Errors
/// The port is taken, or the thread cannot be created.
pub(crate) fn start() -> Result<(), InitError> {
    let listener = TcpListener::bind((GUEST_V4, RELAY_PORT))
        .map_err(InitError::kernel("listen for relayed connections"))?;
    let accept = move || {
        let active = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let Ok(peer) = stream.peer_addr() else { continue };
            let permit = ConnectionPermit::take(&active);
            if peer.ip() != IpAddr::V4(HOST_V4) || active.load(Ordering::Relaxed) > MAX_CONNECTIONS {
                continue;
            }
            let serve = move || {
                let _permit = permit;
                let _ = serve(stream);
            };
            // If the thread cannot be created, the connection is closed.
            let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
        }
    };
    let started = thread::Builder::new().stack_size(STACK).spawn(accept);
    started.map(drop).map_err(InitError::kernel("start the relay"))
}

/// One of the connections that may exist at once.
struct ConnectionPermit(Arc<AtomicUsize>);

impl ConnectionPermit {
    fn take(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(active))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(mut host: TcpStream) -> io::Result<()> {
    host.set_read_timeout(Some(TIMEOUT))?;
    let request = read_request(&mut host)?;
    host.set_read_timeout(None)?;
    match request {
        RelayRequest::Connect(port) => connect(host, port),
        RelayRequest::Export => export(host),
    }
}

/// Reads the first line byte by byte, because what follows it belongs to the service.
fn read_request(host: &mut TcpStream) -> io::Result<RelayRequest> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < MAX_LINE {
        let mut byte = [0];
        host.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let request = std::str::from_utf8(&line).ok().and_then(RelayRequest::parse);
    request.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn connect(mut host: TcpStream, port: u16) -> io::Result<()> {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let Ok(service) = TcpStream::connect_timeout(&address, TIMEOUT) else {
        return host.write_all(REFUSED.as_bytes());
    };
    for stream in [&host, &service] {
        stream.set_nodelay(true)?;
    }
    host.write_all(OK.as_bytes())?;
    let (to_host, from_service) = (host.try_clone()?, service.try_clone()?);
    thread::Builder::new().stack_size(STACK).spawn(move || copy_stream(&from_service, &to_host))?;
    copy_stream(&host, &service);
    Ok(())
}

/// Copies until the end of `from`, or until `to` accepts no more data.
fn copy_stream(mut from: &TcpStream, mut to: &TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    if copied.is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn export(host: TcpStream) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, host);
    layers::write_layer(File::open(UPPER)?.into(), &mut out)?;
    out.flush()
}
