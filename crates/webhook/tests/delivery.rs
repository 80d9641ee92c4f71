//! Deliveries to real sockets: what arrives, what counts as accepted, what is never connected to.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use webhook::{Courier, DeliveryError, Letter, TargetError};

fn courier(allowed: &[&str], patience: Duration) -> Courier {
    Courier::new(allowed.iter().map(|text| text.parse().unwrap()).collect(), patience)
}

fn letter() -> Letter {
    let header = (HeaderName::from_static("e2b-webhook-id"), HeaderValue::from_static("w1"));
    Letter { body: Bytes::from_static(b"{\"a\":1}"), headers: vec![header] }
}

/// Takes one connection, answers this, and hands back what came.
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
async fn a_letter_arrives_whole() {
    let (url, receiver) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
    let courier = courier(&["127.0.0.0/8"], Duration::from_secs(5));
    let status = courier.deliver(&courier.check(&url).unwrap(), letter()).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT);
    let seen = receiver.await.unwrap();
    assert!(seen.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{seen}");
    for part in ["content-type: application/json\r\n", "e2b-webhook-id: w1\r\n", "content-length: 7\r\n"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn only_success_is_acceptance_and_redirects_lead_nowhere() {
    for answer in [
        "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (url, receiver) = receiver(answer).await;
        let courier = courier(&["127.0.0.0/8"], Duration::from_secs(5));
        let error = courier.deliver(&courier.check(&url).unwrap(), letter()).await.unwrap_err();
        assert!(matches!(error, DeliveryError::Refused(_)), "{error}");
        receiver.await.unwrap();
    }
}

#[tokio::test]
async fn inner_addresses_are_not_reached_by_name_either() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let courier = courier(&[], Duration::from_secs(5));
    // Names for the loopback, and numbers that only a resolver recognises.
    for host in ["localhost", "0x7f.1", "2130706433"] {
        let target = courier.check(&format!("http://{host}:{port}/")).unwrap();
        let error = courier.deliver(&target, letter()).await.unwrap_err();
        let refused =
            matches!(error, DeliveryError::Target(TargetError::Internal(_)) | DeliveryError::Resolve(_));
        assert!(refused, "{host}: {error}");
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(nobody.is_err(), "somebody connected");
}

#[tokio::test]
async fn silence_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let courier = courier(&["127.0.0.1/32"], Duration::from_millis(50));
    let target = courier.check(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let error = courier.deliver(&target, letter()).await.unwrap_err();
    assert!(matches!(error, DeliveryError::Timeout), "{error}");
}
