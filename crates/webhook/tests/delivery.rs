//! Deliveries to real sockets: what arrives, which answers are success, and which addresses are never connected to.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use webhook::{DeliveryError, TargetError, WebhookClient, WebhookPayload};

fn client(allowed: &[&str], timeout: Duration) -> WebhookClient {
    WebhookClient::new(allowed.iter().map(|text| text.parse().unwrap()).collect(), timeout)
}

fn payload() -> WebhookPayload {
    let header = (HeaderName::from_static("e2b-webhook-id"), HeaderValue::from_static("w1"));
    WebhookPayload { body: Bytes::from_static(b"{\"a\":1}"), headers: vec![header] }
}

/// Accepts one connection, sends `answer`, and returns the request.
async fn receiver(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"{\"a\":1}") {
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "it hung up: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&bytes[..read]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    (url, task)
}

#[tokio::test]
async fn a_payload_arrives_complete() {
    let (url, receiver) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
    let client = client(&["127.0.0.0/8"], Duration::from_secs(5));
    let status = client.deliver(&client.check(&url).unwrap(), payload()).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    let seen = receiver.await.unwrap();
    assert!(seen.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{seen}");
    for part in ["content-type: application/json\r\n", "e2b-webhook-id: w1\r\n", "content-length: 7\r\n"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn only_2xx_is_success_and_redirects_are_not_followed() {
    for answer in [
        "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (url, receiver) = receiver(answer).await;
        let client = client(&["127.0.0.0/8"], Duration::from_secs(5));
        let error = client.deliver(&client.check(&url).unwrap(), payload()).await.unwrap_err();
        assert!(matches!(error, DeliveryError::Refused(_)), "{error}");
        receiver.await.unwrap();
    }
}

#[tokio::test]
async fn names_of_internal_addresses_are_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = client(&[], Duration::from_secs(5));
    // Names for the loopback, and numbers that only a resolver recognises.
    for host in ["localhost", "0x7f.1", "2130706433"] {
        let target = client.check(&format!("http://{host}:{port}/")).unwrap();
        let error = client.deliver(&target, payload()).await.unwrap_err();
        let refused =
            matches!(error, DeliveryError::Target(TargetError::Internal(_)) | DeliveryError::Resolve(_));
        assert!(refused, "{host}: {error}");
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nobody.is_err(), "somebody connected");
}

#[tokio::test]
async fn a_silent_receiver_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&["127.0.0.1/32"], Duration::from_millis(50));
    let target = client.check(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let error = client.deliver(&target, payload()).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Timeout), "{error}");
}
