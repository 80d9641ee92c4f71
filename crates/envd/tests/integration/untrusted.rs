//! Malformed and malicious requests: the corpus, and random mutations of it.
//! envd must respond or close the connection, and go on serving others; well-formed HTTP must get a well-formed Connect response.
//! Only calls that change nothing are made: this envd serves the host's files.

#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::common::{Envd, corpus};
use proptest::prelude::*;

/// Sends raw bytes and reads until envd sends no more. An incomplete request is ended by this side, but only
/// after envd has had time to process it: it does not work for clients that have gone.
fn send(envd: &Envd, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(&envd.address).expect("envd accepts");
    // It may close the connection in the middle.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    for patience in [300, 20_000] {
        stream.set_read_timeout(Some(Duration::from_millis(patience))).expect("a socket");
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return answer,
        }
        let _ = stream.shutdown(Shutdown::Write);
    }
    panic!("no end to {}", request.escape_ascii())
}

fn assert_healthy(envd: &Envd) {
    let answer = send(envd, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", answer.escape_ascii());
}

#[test]
fn the_corpus_gets_responses_and_does_no_harm() {
    let envd = Envd::start();
    for (name, request) in corpus::dir("http") {
        let answer = send(&envd, &request);
        let status = answer.get(9..12).unwrap_or_default();
        assert!(status != b"500", "{name}: {}", answer.escape_ascii());
        assert_healthy(&envd);
    }
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    let methods = prop::sample::select(vec![
        "process.Process/List",
        "process.Process/Connect",
        "process.Process/SendInput",
        "process.Process/StreamInput",
        "process.Process/SendSignal",
        "process.Process/CloseStdin",
        "process.Process/Update",
        "filesystem.Filesystem/Stat",
        "filesystem.Filesystem/ListDir",
        "filesystem.Filesystem/GetWatcherEvents",
        "filesystem.Filesystem/RemoveWatcher",
        "filesystem.Filesystem/WatchDir",
    ]);
    methods.prop_map(|method| method.as_bytes().to_vec())
}

/// JSON that is nearly valid: known keys, any values.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let keys = prop::sample::select(vec![
        "process", "pid", "tag", "input", "stdin", "path", "depth", "data", "start", "signal", "pty", "size",
    ]);
    let value = prop_oneof![
        any::<i64>().prop_map(|n| serde_json::json!(n)),
        ".{0,40}".prop_map(|text| serde_json::json!(text)),
        Just(serde_json::json!(null)),
        Just(serde_json::json!({"pid": 1})),
        Just(serde_json::json!({"stdin": "!!!not base64"})),
    ];
    let object = prop::collection::vec((keys, value), 0..5).prop_map(|pairs| {
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<serde_json::Map<_, _>>()
    });
    prop_oneof![
        object.prop_map(|object| serde_json::Value::from(object).to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn envelope() -> impl Strategy<Value = Vec<u8>> {
    let header = (prop_oneof![Just(0u8), any::<u8>()], prop_oneof![Just(None), any::<u32>().prop_map(Some)]);
    prop::collection::vec((header, message()), 0..4).prop_map(|messages| {
        messages.into_iter().fold(Vec::new(), |mut all, ((flags, length), body)| {
            all.push(flags);
            all.extend(length.unwrap_or(u32::try_from(body.len()).unwrap_or(0)).to_be_bytes());
            all.extend(body);
            all
        })
    })
}

fn rpc() -> impl Strategy<Value = Vec<u8>> {
    let stream = (target(), envelope()).prop_map(|(target, body)| (target, "application/connect+json", body));
    let unary = (target(), message()).prop_map(|(target, body)| (target, "application/json", body));
    prop_oneof![stream, unary].prop_map(|(target, kind, body)| {
        let mut request = b"POST /".to_vec();
        request.extend(target);
        let head = format!(
            " HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nConnect-Protocol-Version: 1\r\nConnect-Timeout-Ms: 200\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        request.extend(head.into_bytes());
        request.extend(body);
        request
    })
}

/// Requests for downloads with any signatures, users, ranges and encodings.
fn download() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        "[!-~]{0,30}",
        "%[0-9a-f]{2}%[0-9a-f]{2}",
        "v1_[A-Za-z0-9+/]{0,50}",
        "-?[0-9]{1,25}",
        "\\.\\./\\.\\./etc"
    ];
    let (query, range) = (prop::collection::vec(word, 6), "[ -~]{0,40}");
    (query, range).prop_map(|(query, range)| {
        let [path, username, signature, expiration, encoding, etag] = &query[..] else { unreachable!("six words") };
        let clean = |text: &str| text.replace([' ', '#'], "");
        format!(
            "GET /files?path={}&username={}&signature={}&signature_expiration={} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\
             Accept-Encoding: {encoding}\r\nIf-None-Match: {etag}\r\nConnection: close\r\n\r\n",
            clean(path), clean(username), clean(signature), clean(expiration)
        )
        .into_bytes()
    })
}

/// A request with some bytes changed, dropped or duplicated.
fn mutated(requests: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..4);
    (requests, changes).prop_map(|(mut request, changes)| {
        for (at, byte, kind) in changes {
            // Never the method and path: they ensure that nothing is changed.
            let first = request.iter().position(|b| *b == b'\r').unwrap_or(0);
            let at = first + at.index(request.len() - first);
            match kind {
                0 => request[at] = byte,
                1 => drop(request.remove(at)),
                _ => request.insert(at, byte),
            }
        }
        request
    })
}

fn throw(requests: impl Strategy<Value = Vec<u8>>) {
    let envd = Envd::start();
    corpus::throw(200, requests, |request| {
        send(&envd, &request);
        assert_healthy(&envd);
        Ok(())
    });
}

#[test]
fn random_rpcs_do_no_harm() {
    throw(mutated(rpc()));
}

#[test]
fn random_downloads_do_no_harm() {
    throw(mutated(download()));
}

/// Unary methods that change nothing, whatever the request is.
const UNARY: [&str; 10] = [
    "process.Process/List",
    "process.Process/SendInput",
    "process.Process/SendSignal",
    "process.Process/CloseStdin",
    "process.Process/Update",
    "filesystem.Filesystem/Stat",
    "filesystem.Filesystem/ListDir",
    "filesystem.Filesystem/CreateWatcher",
    "filesystem.Filesystem/GetWatcherEvents",
    "filesystem.Filesystem/RemoveWatcher",
];

/// Streaming methods that change nothing.
const STREAMS: [&str; 3] =
    ["process.Process/Connect", "process.Process/StreamInput", "filesystem.Filesystem/WatchDir"];

/// The response to any message must be JSON, and errors must have a code.
fn assert_unary(envd: &Envd, method: &str, message: &[u8]) {
    let headers = [("Content-Type", "application/json"), ("Connect-Protocol-Version", "1")];
    let answer = envd.request("POST", &format!("/{method}"), &headers, message);
    let shown =
        || format!("{method} {}: {} {}", message.escape_ascii(), answer.status, answer.body.escape_ascii());
    assert_eq!(answer.header("content-type"), Some("application/json"), "{}", shown());
    let json = answer.json();
    assert!(json.is_object(), "{}", shown());
    assert!(answer.status == 200 || json["code"].is_string(), "{}", shown());
    assert!(![500, 502, 503].contains(&answer.status), "{}", shown());
}

/// The response to any body of envelopes must be 200 with envelopes, of which only the last is the end.
fn assert_stream(envd: &Envd, method: &str, body: &[u8]) {
    let headers = [
        ("Content-Type", "application/connect+json"),
        ("Connect-Protocol-Version", "1"),
        ("Connect-Timeout-Ms", "50"),
    ];
    let answer = envd.request("POST", &format!("/{method}"), &headers, body);
    let shown =
        || format!("{method} {}: {} {}", body.escape_ascii(), answer.status, answer.body.escape_ascii());
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/connect+json")),
        "{}",
        shown()
    );
    let (mut rest, mut ended) = (&answer.body[..], false);
    while let Some((&[flags, a, b, c, d], behind)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        assert!(!ended && [0, 2].contains(&flags) && length <= behind.len(), "{}", shown());
        let message: serde_json::Value = serde_json::from_slice(&behind[..length]).expect("JSON");
        let (code, text) =
            (&message["error"]["code"], message["error"]["message"].as_str().unwrap_or_default());
        // The error that the protocol prescribes.
        assert!(code != "internal" || text.starts_with("received compressed message"), "{}", shown());
        (ended, rest) = (flags == 2, &behind[length..]);
    }
    assert!(ended && rest.is_empty(), "{}", shown());
}

fn contents(dir: &str) -> Vec<Vec<u8>> {
    corpus::dir(dir).into_iter().map(|(_, content)| content).collect()
}

#[test]
fn messages_of_the_corpus_get_proper_responses() {
    let envd = Envd::start();
    for message in contents("json") {
        UNARY.iter().for_each(|method| assert_unary(&envd, method, &message));
    }
    assert_healthy(&envd);
}

#[test]
fn envelopes_of_the_corpus_get_proper_responses() {
    let envd = Envd::start();
    for body in contents("envelope") {
        STREAMS.iter().for_each(|method| assert_stream(&envd, method, &body));
    }
    assert_healthy(&envd);
}

#[test]
fn changed_messages_get_proper_responses() {
    let envd = Envd::start();
    // No walks through all files of the host.
    let mut seeds = contents("json");
    seeds.retain(|message| message.len() < 1000 && memchr::memmem::find(message, b"depth").is_none());
    corpus::throw(400, (prop::sample::select(&UNARY[..]), corpus::bred(seeds)), |(method, message)| {
        assert_unary(&envd, method, &message);
        Ok(())
    });
    assert_healthy(&envd);
}

#[test]
fn changed_envelopes_get_proper_responses() {
    let envd = Envd::start();
    let methods = prop::sample::select(&STREAMS[..]);
    corpus::throw(400, (methods, corpus::bred(contents("envelope"))), |(method, body)| {
        assert_stream(&envd, method, &body);
        Ok(())
    });
    assert_healthy(&envd);
}

#[test]
fn init_requests_of_the_corpus_and_changed_ones_do_no_harm() {
    // A request may set a token, and envd refuses the next one then: so each has an envd of its own, with a system root of its own.
    let introduce = |message: &[u8]| {
        let envd = Envd::start();
        let answer = envd.request("POST", "/init", &[], message);
        assert!(
            [204, 400].contains(&answer.status),
            "{}: {}",
            message.escape_ascii(),
            answer.body.escape_ascii()
        );
        assert_healthy(&envd);
        let outside: Vec<_> = std::fs::read_dir(envd.dir.path()).expect("its directory").flatten().collect();
        assert!(outside.iter().all(|entry| entry.file_name() == "system"), "{outside:?}");
    };
    let seeds = contents("init");
    seeds.iter().for_each(|message| introduce(message));
    corpus::throw(60, corpus::bred(seeds), |message| {
        introduce(&message);
        Ok(())
    });
}
