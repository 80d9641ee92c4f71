//! The way to the server: TLS, redirects to it, and proxies before it.

use std::sync::Arc;

use budget::Budget;
use certificates::{Authority, Names};
use edge::{CurrentCertificate, tls_config, tls_provider};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use time::Duration as Days;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

const DOMAIN: &str = "sandboxes.example";

struct Tls {
    authority: Authority,
    current: Arc<CurrentCertificate>,
}

impl Tls {
    fn new() -> Self {
        let authority = Authority::create("Test", Names::Domain(DOMAIN), Days::days(1)).unwrap();
        let current = CurrentCertificate::new(certificate(&authority));
        Self { authority, current }
    }

    fn protocol(&self) -> Protocol {
        Protocol::Tls(tls_config(Arc::clone(&self.current)).unwrap())
    }

    async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(
            certificates::certificates(self.authority.certificate_pem().as_bytes()).unwrap(),
        );
        let mut config = ClientConfig::builder_with_provider(tls_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn certificate(authority: &Authority) -> rustls::sign::CertifiedKey {
    let issued = authority.issue(&[DOMAIN, &format!("*.{DOMAIN}")], Days::days(1)).unwrap();
    issued.certified_key(&tls_provider()).unwrap()
}

fn on_domain(config: &mut EdgeConfig) {
    DOMAIN.clone_into(&mut config.domain);
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_over_tls() {
    let tls = Tls::new();
    let server = Server::with(tls.protocol(), on_domain).await;
    let (id, _) = server.sandbox(|_| {}).await;
    let named = format!("{APP_PORT}-{id}.{DOMAIN}");
    let request = || Request::get("/request").header("host", &named).body(Full::<Bytes>::default()).unwrap();

    let stream = tls.connect(server.address, &named, &["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);

    let stream = tls.connect(server.address, &named, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // Browsers use a connection for all names of its certificate.
    for (host, status) in
        [(named.clone(), 200), (format!("9-{id}.{DOMAIN}"), 502), (format!("api.{DOMAIN}"), 404)]
    {
        let request = Request::get(format!("https://{host}/request")).body(Full::<Bytes>::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status, "{host}");
    }
    let wrong = tls.connect(server.address, "other.example", &[]).await;
    assert!(wrong.is_err(), "the certificate is for the domain alone");
}

#[tokio::test]
async fn a_new_certificate_leaves_open_connections_as_they_are() {
    let tls = Tls::new();
    let server = Server::with(tls.protocol(), on_domain).await;
    let name = format!("api.{DOMAIN}");
    let connect = async || {
        let stream = tls.connect(server.address, &name, &[]).await.unwrap();
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        (sender, certificate)
    };
    let health = || Request::get("/health").header("host", &name).body(Full::<Bytes>::default()).unwrap();
    let (mut before, first) = connect().await;
    assert_eq!(before.send_request(health()).await.unwrap().status(), 200);
    tls.current.replace(certificate(&tls.authority));
    let (mut after, second) = connect().await;
    assert_ne!(first, second);
    for sender in [&mut before, &mut after] {
        assert_eq!(sender.send_request(health()).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn unfinished_handshakes_keep_nobody_out() {
    let tls = Tls::new();
    let server = Server::with(tls.protocol(), |config| {
        on_domain(config);
        config.client_connections = Budget::new("client connections", 8);
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The beginning of a handshake whose rest never comes.
        stream.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
        silent.push(stream);
    }
    let name = format!("api.{DOMAIN}");
    let stream = tls.connect(server.address, &name, &[]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let health = Request::get("/health").header("host", &name).body(Full::<Bytes>::default()).unwrap();
    assert_eq!(sender.send_request(health).await.unwrap().status(), 200);
    let ended = silent[0].read(&mut [0; 8]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "the oldest handshake has given way");
}

#[tokio::test]
async fn the_end_of_a_sandbox_resets_connections_of_tls() {
    let tls = Tls::new();
    let server = Server::with(tls.protocol(), on_domain).await;
    let (id, guest) = server.sandbox(|_| {}).await;
    let named = format!("{APP_PORT}-{id}.{DOMAIN}");
    let mut stream = tls.connect(server.address, &named, &["http/1.1"]).await.unwrap();
    stream.write_all(format!("GET /ticks HTTP/1.1\r\nhost: {named}\r\n\r\n").as_bytes()).await.unwrap();
    let mut readers = guest.readers();
    readers.wait_for(|readers| *readers == 1).await.unwrap();
    guest.tick("tick");
    let mut buffer = [0; 1024];
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("tick") {
        let length = stream.read(&mut buffer).await.unwrap();
        seen.extend_from_slice(&buffer[..length]);
    }
    server.kill(&id).await;
    let error = loop {
        match stream.read(&mut buffer).await {
            Ok(0) => panic!("a clean end looks like a complete response"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn plain_http_is_redirected_to_the_port_of_https() {
    let server = Server::with(Protocol::Redirect { port: 8443 }, on_domain).await;
    for (request, location) in [
        (
            "GET /a?b=%2F HTTP/1.1\r\nhost: api.sandboxes.example",
            "https://api.sandboxes.example:8443/a?b=%2F",
        ),
        (
            "POST / HTTP/1.1\r\nhost: 80-iabc.sandboxes.example:8080\r\ncontent-length: 0",
            "https://80-iabc.sandboxes.example:8443/",
        ),
        ("GET http://[::1]:80/x HTTP/1.1\r\nhost: [::1]", "https://[::1]:8443/x"),
    ] {
        let mut stream = server.raw(&format!("{request}\r\nconnection: close\r\n\r\n")).await;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 308 "), "{response}");
        assert!(response.contains(&format!("location: {location}\r\n")), "{response}");
    }
    for request in ["GET / HTTP/1.0", "OPTIONS * HTTP/1.1\r\nhost: x", "GET / HTTP/1.1\r\nhost: a/b"] {
        let mut stream = server.raw(&format!("{request}\r\n\r\n")).await;
        assert!(head(&mut stream).await.contains(" 400 "), "{request}");
    }
}

/// A header of the PROXY protocol for a client of TLS at 198.51.100.7.
const PROXY_HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc6\x33\x64\x07\x7f\0\0\x01\x30\x39\x01\xbb\x20\0\x05\x01\0\0\0\0";

#[tokio::test]
async fn servers_in_sandboxes_are_told_of_clients_if_the_operator_wants_that() {
    let server = Server::with(Protocol::Plain, |config| {
        config.forwarded_headers = true;
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let (id, _) = server.sandbox(|_| {}).await;
    let named = host(APP_PORT, &id);
    let pretended = "x-forwarded-for: 10.0.0.1\r\nx-forwarded-proto: http\r\nforwarded: for=10.0.0.1\r\n";
    let request = format!("GET /request HTTP/1.1\r\nhost: {named}\r\n{pretended}connection: close\r\n\r\n");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[PROXY_HEADER, request.as_bytes()].concat()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let body: Value = serde_json::from_str(response.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        body["headers"],
        json!({
            "host": [named], "x-forwarded-for": ["198.51.100.7"], "x-forwarded-host": [named],
            "x-forwarded-proto": ["https"],
        })
    );
    let mut bare = server.raw(&request).await;
    let mut response = String::new();
    let ended = bare.read_to_string(&mut response).await;
    assert!(
        response.is_empty() && matches!(ended, Ok(0) | Err(_)),
        "a connection without the header is closed"
    );
}

#[tokio::test]
async fn browsers_are_bound_to_https_only_if_the_operator_wants_that() {
    for (seconds, expected) in [(None, None), (Some(600), Some("max-age=600"))] {
        let tls = Tls::new();
        let server = Server::with(tls.protocol(), |config| {
            on_domain(config);
            config.hsts = seconds;
        })
        .await;
        let name = format!("api.{DOMAIN}");
        let stream = tls.connect(server.address, &name, &[]).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let health = Request::get("/health").header("host", &name).body(Full::<Bytes>::default()).unwrap();
        let response = sender.send_request(health).await.unwrap();
        let header = response.headers().get("strict-transport-security").map(|value| value.to_str().unwrap());
        assert_eq!(header, expected);
    }
}
