//! Requests that no honest client sends: a corpus that once seemed worth keeping, and random ones around it.
//! Whatever comes, envd answers or hangs up, and goes on answering others.
//! Only calls that change nothing are made: this envd has the host's files before it.

#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use common::Envd;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Sends raw bytes and reads until envd has nothing more to say. A request that is not whole is ended by us, but only
/// after envd has had time to look at it: it does not work for clients that are gone.
fn send(envd: &Envd, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(&envd.address).expect("envd accepts");
    // It may hang up in the middle.
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

fn assert_well(envd: &Envd) {
    let answer = send(envd, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", answer.escape_ascii());
}

#[test]
fn the_corpus_is_answered_and_does_no_harm() {
    let envd = Envd::start();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut requests: Vec<_> =
        std::fs::read_dir(folder).expect("the corpus").flatten().map(|e| e.path()).collect();
    requests.sort();
    assert!(requests.len() > 20);
    for path in requests {
        let answer = send(&envd, &std::fs::read(&path).expect("readable"));
        let status = answer.get(9..12).unwrap_or_default();
        assert!(status != b"500", "{}: {}", path.display(), answer.escape_ascii());
        assert_well(&envd);
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

/// JSON that is nearly right: known keys, any values.
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

/// Signatures, users, ranges and encodings in a download's head.
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

/// A request with some bytes changed, dropped or doubled.
fn mutated(requests: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..4);
    (requests, changes).prop_map(|(mut request, changes)| {
        for (at, byte, kind) in changes {
            // Never the method and path: those decide that nothing is changed.
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
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&requests, |request| {
        send(&envd, &request);
        assert_well(&envd);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn random_rpcs_do_no_harm() {
    throw(mutated(rpc()));
}

#[test]
fn random_downloads_do_no_harm() {
    throw(mutated(download()));
}
