//! The checks of the server's domain, made as its clients would: names, certificate, protocols, and what a proxy in front may break.
//! Two of them need a sandbox, which the running server starts and ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_client::{Client, CreateOptions, ProcessEvent, RunOptions, Sandbox};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Finding;
use crate::access;
use crate::failure::Failure;
use crate::paths::{DataDir, ServerNote};

const HTTPS_PORT: u16 = 443;
/// Maximum time of one step of a check.
const TIMEOUT: Duration = Duration::from_secs(10);
const APP_PORT: u16 = 8000;
/// A server for the sandbox: it echoes after an upgrade, and otherwise sends a body without end.
const APP: &str = r#"
import base64, hashlib, re, socket, threading, time
def serve(link):
    head = b""
    while b"\r\n\r\n" not in head:
        head += link.recv(4096)
    key = re.search(rb"(?i)\r\nsec-websocket-key: *(\S+)", head)
    if key:
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        link.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                     b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while data := link.recv(4096):
            link.sendall(data)
        return
    link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        link.sendall(b"4\r\ntick\r\n")
        time.sleep(0.05)
server = socket.create_server(("127.0.0.1", 8000))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

/// A domain as clients know it.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    name: String,
    port: u16,
}

impl Domain {
    /// Parses the value of `E2B_DOMAIN`: a name, and a port if it is not 443.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, port.parse().map_err(|_| format!("{port} is no port"))?),
            None => (text, HTTPS_PORT),
        };
        Ok(Self { name: crate::paths::domain(name)?, port })
    }

    fn host(&self, label: &str) -> String {
        format!("{label}.{}", self.name)
    }
}

/// Checks a domain. Without a running server, the checks that need a sandbox are left out.
pub(super) async fn check(domain: &Domain, data: &DataDir, server: Option<&ServerNote>) -> Vec<Finding> {
    let mut findings = vec![names(domain).await];
    if !is_ok(&findings) {
        return findings;
    }
    findings.push(certificate(domain).await);
    if !is_ok(&findings) {
        return findings;
    }
    findings.push(http_2(domain).await);
    let Some(server) = server else {
        let remedy = "start the server and run doctor again";
        findings.push(Finding::warning("domain sandboxes", "not checked: no server runs here", remedy));
        return findings;
    };
    match sandbox_checks(domain, data, server).await {
        Ok(more) => findings.extend(more),
        Err(failure) => findings.push(Finding::failure(
            "domain sandboxes",
            format!("no sandbox to reach through the domain: {failure}"),
            "see the failures above",
        )),
    }
    findings
}

fn is_ok(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.status == super::Status::Ok)
}

/// Names that clients use: the API, and one of a sandbox.
fn labels() -> [String; 2] {
    ["api".to_owned(), format!("49983-i{}", ids::random_hex::<8>())]
}

async fn names(domain: &Domain) -> Finding {
    const CHECK: &str = "domain names";
    for label in labels() {
        let host = domain.host(&label);
        if let Err(error) = resolve(&host, domain.port).await {
            return Finding::failure(
                CHECK,
                format!("{host} does not resolve: {error}"),
                format!(
                    "make a wildcard record *.{} with this host's address, or have the server answer with `serve --dns-listen`",
                    domain.name
                ),
            );
        }
    }
    Finding::ok(CHECK, format!("api.{0} and *.{0} resolve", domain.name))
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let mut found = within(tokio::net::lookup_host((host, port))).await??;
    found.next().ok_or_else(|| Failure::new("it has no address"))
}

async fn certificate(domain: &Domain) -> Finding {
    const CHECK: &str = "domain certificate";
    for label in labels() {
        let host = domain.host(&label);
        if let Err(failure) = connect(domain, &host, &[b"h2", b"http/1.1"]).await {
            return Finding::failure(
                CHECK,
                format!("no connection to {host} on port {}: {failure}", domain.port),
                format!(
                    "the certificate must be valid for *.{}, and its authority trusted: `cofferdam tls trust` does that for an \
                     authority of the server's own",
                    domain.name
                ),
            );
        }
    }
    Finding::ok(CHECK, format!("valid for api.{0} and *.{0}, and trusted", domain.name))
}

async fn http_2(domain: &Domain) -> Finding {
    const CHECK: &str = "domain HTTP/2";
    let negotiated = async {
        let stream = connect(domain, &domain.host("api"), &[b"h2", b"http/1.1"]).await?;
        Ok::<_, Failure>(stream.get_ref().1.alpn_protocol() == Some(b"h2"))
    };
    match negotiated.await {
        Ok(true) => Finding::ok(CHECK, "negotiated"),
        Ok(false) => Finding::warning(
            CHECK,
            "not negotiated: clients use HTTP/1.1",
            "allow h2 by ALPN in the proxy in front",
        ),
        Err(failure) => Finding::failure(CHECK, failure.to_string(), "see the failures above"),
    }
}

/// Connects with TLS as a client that trusts the system's authorities.
async fn connect(domain: &Domain, host: &str, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>, Failure> {
    let mut config = tls_roots::client_config();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let address = resolve(host, domain.port).await?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Failure::new(error.to_string()))?;
    let stream = within(TcpStream::connect(address)).await??;
    Ok(within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await??)
}

async fn within<T>(step: impl Future<Output = T>) -> Result<T, Failure> {
    let outcome = tokio::time::timeout(TIMEOUT, step).await;
    outcome.map_err(|_| Failure::new(format!("nothing happened for {} s", TIMEOUT.as_secs())))
}

async fn sandbox_checks(
    domain: &Domain,
    data: &DataDir,
    server: &ServerNote,
) -> Result<[Finding; 2], Failure> {
    let client = access::operator_client(&server.url, &access::admin_token(data)?)?;
    let sandbox = sandbox(&client).await?;
    let host = domain.host(&format!("{APP_PORT}-{}", sandbox.id()));
    let upgrade = upgrade(domain, &host).await;
    let reset = reset(domain, &host, &sandbox).await;
    // Also if a check failed before it was killed.
    let _ = sandbox.kill().await;
    Ok([
        match upgrade {
            Ok(()) => Finding::ok("domain websockets", format!("a server at {host} was reached and echoed")),
            Err(failure) => Finding::failure(
                "domain websockets",
                format!("{host}: {failure}"),
                "have the domain lead to this server, and the proxy in front pass hosts and upgrades on (docs/domain.md)",
            ),
        },
        match reset {
            Ok(how) => Finding::ok("domain resets", how),
            Err(failure) => Finding::failure(
                "domain resets",
                failure.to_string(),
                "clients take cut responses for complete ones: have the proxy in front reset connections too, and not buffer",
            ),
        },
    ])
}

/// Starts a sandbox with the server of these checks.
async fn sandbox(client: &Client) -> Result<Sandbox, Failure> {
    let options = CreateOptions { timeout: Duration::from_secs(120), ..CreateOptions::new("base") };
    let sandbox = Sandbox::create(client, options).await?;
    let started = async {
        sandbox.files().write("/tmp/doctor.py", APP).await?;
        let mut app = sandbox.commands().start("exec python3 /tmp/doctor.py", RunOptions::default()).await?;
        let mut said = String::new();
        while let Some(event) = app.next().await? {
            if let ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data) = event {
                said.push_str(&String::from_utf8_lossy(&data));
            }
            if said.contains("listening") {
                return Ok(());
            }
        }
        Err(Failure::new(format!("a server inside did not start: {said}")))
    };
    match within(started).await.flatten() {
        Ok(()) => Ok(sandbox),
        Err(failure) => {
            let _ = sandbox.kill().await;
            Err(failure)
        }
    }
}

async fn request(domain: &Domain, host: &str, more: &str) -> Result<(TlsStream<TcpStream>, String), Failure> {
    let mut stream = connect(domain, host, &[b"http/1.1"]).await?;
    let port = if domain.port == HTTPS_PORT { String::new() } else { format!(":{}", domain.port) };
    let head = format!("GET / HTTP/1.1\r\nHost: {host}{port}\r\n{more}\r\n");
    within(stream.write_all(head.as_bytes())).await??;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") && answer.len() < 64 << 10 {
        let length = within(stream.read(&mut buffer)).await??;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..length]);
    }
    let status = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    Ok((stream, status))
}

async fn upgrade(domain: &Domain, host: &str) -> Result<(), Failure> {
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let (mut stream, status) = request(domain, host, headers).await?;
    if !status.contains(" 101 ") {
        return Err(Failure::new(format!("an upgrade to a websocket was answered with {status:?}")));
    }
    within(stream.write_all(b"ping")).await??;
    let mut echo = [0; 4];
    within(stream.read_exact(&mut echo)).await??;
    if &echo == b"ping" { Ok(()) } else { Err(Failure::new("a websocket did not carry what was sent")) }
}

/// Kills the sandbox during a response, which must break off.
async fn reset(domain: &Domain, host: &str, sandbox: &Sandbox) -> Result<&'static str, Failure> {
    let (mut stream, status) = request(domain, host, "").await?;
    if !status.contains(" 200 ") {
        return Err(Failure::new(format!("a request was answered with {status:?}")));
    }
    sandbox.kill().await?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match within(stream.read(&mut buffer)).await? {
            Err(_) => return Ok("the end of a sandbox arrives as a reset"),
            Ok(0) if seen.ends_with(b"0\r\n\r\n") => {
                return Err(Failure::new("a response was completed after its sandbox had ended"));
            }
            Ok(0) => return Ok("the end of a sandbox arrives as an incomplete response"),
            Ok(length) => seen.extend_from_slice(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_have_a_port_or_that_of_https() {
        let parsed = |text: &str| Domain::parse(text).map(|domain| (domain.name, domain.port));
        assert_eq!(parsed("Sandboxes.example.org"), Ok(("sandboxes.example.org".to_owned(), 443)));
        assert_eq!(parsed("sandboxes.internal:8443"), Ok(("sandboxes.internal".to_owned(), 8443)));
        for text in ["", "https://x.y", "x.y:port", "x..y", "-x.y"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
