//! File contents over REST: uploads, downloads, ranges, compression, signed links.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::Envd;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::json;

const RAW: (&str, &str) = ("Content-Type", "application/octet-stream");

fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (filename, content) in parts {
        let head =
            format!("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\r\n");
        body.extend([head.as_bytes(), content.as_bytes(), b"\r\n"].concat());
    }
    body.extend(b"--XX--\r\n");
    body
}

const FORM: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=XX");

#[test]
fn raw_up_and_down() {
    let envd = Envd::start();
    let path = envd.path("a/b/c.bin");
    let content: Vec<u8> = (0..20_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let target = format!("/files?path={}", path.display());
    let answer = envd.request("POST", &target, &[RAW, ("X-Metadata-Author", "me")], &content);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        json!([{"name": "c.bin", "path": path, "type": "file", "metadata": {"author": "me"}}])
    );
    let meta = std::fs::metadata(&path).expect("written");
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o644, 0));
    let parent = std::fs::metadata(path.parent().expect("a parent")).expect("made");
    assert_eq!(parent.permissions().mode() & 0o777, 0o755);
    let answer = envd.get(&target);
    assert_eq!(answer.header("content-length"), Some("20000003"));
    assert!(answer.body == content, "the same bytes");

    let answer = envd.request("POST", &target, &[RAW], b"short");
    assert_eq!(answer.json(), json!([{"name": "c.bin", "path": path, "type": "file"}]));
    assert_eq!(std::fs::read(&path).expect("written"), b"short");
    assert_eq!(envd.request("POST", &target, &[RAW], b"").status, 200);
    assert_eq!(std::fs::read(&path).expect("written"), b"");
    let stat = envd.call("filesystem.Filesystem/Stat", &json!({"path": path})).json();
    assert_eq!(stat["entry"].get("metadata"), None, "{stat}");
}

#[test]
fn forms_with_several_files() {
    let envd = Envd::start();
    let (a, b) = (envd.path("x/a.txt"), envd.path("b.txt"));
    let body = form(&[(a.to_str().expect("text"), "one"), (b.to_str().expect("text"), "")]);
    let answer = envd.request("POST", "/files", &[FORM], &body);
    assert_eq!(answer.json().as_array().map(Vec::len), Some(2), "{}", answer.text());
    assert_eq!((std::fs::read(&a).expect("a"), std::fs::read(&b).expect("b")), (b"one".to_vec(), Vec::new()));

    let same = form(&[(a.to_str().expect("text"), "first"), (a.to_str().expect("text"), "second")]);
    let answer = envd.request("POST", "/files", &[FORM], &same);
    assert_eq!((answer.status, answer.json()["code"].as_u64()), (400, Some(400)));
    assert_eq!(std::fs::read(&a).expect("a"), b"first");
    let answer = envd.request(
        "POST",
        "/files",
        &[FORM],
        b"--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nab",
    );
    assert_eq!(answer.status, 400);
    let answer = envd.request("POST", "/files?path=/x", &[("Content-Type", "text/plain")], b"");
    assert_eq!(answer.status, 400);
    assert_eq!(envd.request("POST", "/files", &[RAW], b"").status, 400);
    assert_eq!(envd.request("POST", "/files?path=/tmp", &[RAW], b"x").status, 400);
    let below_file = format!("/files?path={}/f", a.display());
    assert_eq!(envd.request("POST", &below_file, &[RAW], b"x").status, 500);
}

#[test]
fn gzip_both_ways() {
    let envd = Envd::start();
    let target = format!("/files?path={}", envd.path("z").display());
    let content = "squeeze me ".repeat(200_000);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content.as_bytes()).expect("compressed");
    let compressed = encoder.finish().expect("compressed");
    let answer = envd.request("POST", &target, &[RAW, ("Content-Encoding", "gzip")], &compressed);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(std::fs::read_to_string(envd.path("z")).expect("written"), content);

    let answer = envd.request("GET", &target, &[("Accept-Encoding", "gzip")], b"");
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    GzDecoder::new(&answer.body[..]).read_to_string(&mut plain).expect("gzip");
    assert_eq!(plain, content);
    assert_eq!(envd.request("GET", &target, &[("Accept-Encoding", "br, identity;q=0")], b"").status, 406);

    let cut = &compressed[..compressed.len() / 2];
    assert_eq!(envd.request("POST", &target, &[RAW, ("Content-Encoding", "gzip")], cut).status, 400);
    assert_eq!(envd.request("POST", &target, &[RAW, ("Content-Encoding", "br")], b"").status, 400);
}

#[test]
fn parts_and_conditions() {
    let envd = Envd::start();
    std::fs::write(envd.path("r"), "0123456789").expect("written");
    let target = format!("/files?path={}", envd.path("r").display());
    let answer = envd.request("GET", &target, &[("Range", "bytes=2-4")], b"");
    assert_eq!((answer.status, answer.text()), (206, "234"));
    assert_eq!(answer.header("content-range"), Some("bytes 2-4/10"));
    let answer = envd.request("GET", &target, &[("Range", "bytes=20-")], b"");
    assert_eq!((answer.status, answer.header("content-range")), (416, Some("bytes */10")));
    let etag = envd.get(&target).header("etag").expect("a tag").to_owned();
    assert_eq!(envd.request("GET", &target, &[("If-None-Match", &etag)], b"").status, 304);
}

#[test]
fn special_files() {
    let envd = Envd::start();
    let boot_id = envd.get("/files?path=/proc/sys/kernel/random/boot_id");
    assert_eq!(boot_id.text().trim().len(), 36);
    assert!(envd.get("/files?path=/proc/self/smaps").body.len() > 1000);
    std::fs::write(envd.path("empty"), "").expect("written");
    let empty = envd.get(&format!("/files?path={}", envd.path("empty").display()));
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    let missing = envd.get("/files?path=/no/such/file");
    assert_eq!(missing.json(), json!({"code": 404, "message": "path '/no/such/file' does not exist"}));
    let dir = envd.get("/files?path=/tmp");
    assert_eq!(dir.json(), json!({"code": 400, "message": "path '/tmp' is a directory"}));
    assert_eq!(envd.get("/files?path=~root/x").status, 400);
    assert_eq!(envd.get("/files?path=%00").status, 400);
    assert_eq!(envd.get("/files?path=/etc/passwd&username=missing").status, 401);

    // A pipe without a writer must not block anything.
    let fifo = envd.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    assert_eq!(envd.get(&format!("/files?path={}", fifo.display())).status, 400);
    assert_eq!(envd.request("POST", &format!("/files?path={}", fifo.display()), &[RAW], b"x").status, 400);

    let newline = format!("/files?path={}/a%0Ab", envd.dir.path().display());
    assert_eq!(envd.request("POST", &newline, &[RAW], b"x").status, 200);
    assert_eq!(envd.get(&newline).text(), "x");
}

#[test]
fn ownership_and_dots() {
    let envd = Envd::start();
    std::fs::set_permissions(envd.dir.path(), std::fs::Permissions::from_mode(0o777)).expect("opened");
    let target = format!("/files?path={}/up/../new/f&username=nobody", envd.dir.path().display());
    assert_eq!(envd.request("POST", &target, &[RAW], b"x").status, 200);
    let nobody = std::fs::metadata(envd.path("new/f")).expect("written").uid();
    assert_ne!(nobody, 0);
    assert_eq!(std::fs::metadata(envd.path("new")).expect("made").uid(), nobody);
    assert_eq!(std::fs::metadata(envd.dir.path()).expect("there").uid(), 0, "what was there keeps its owner");
    assert!(!envd.path("up").exists());
}

#[test]
fn signed_links() {
    let mut envd = Envd::start();
    let token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
    assert_eq!(
        envd.request("POST", "/init", &[], json!({"accessToken": token}).to_string().as_bytes()).status,
        204
    );
    let signature = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
    // The signature is right; then the user is looked up, who does not exist on this system.
    let answer =
        envd.get(&format!("/files?path=hello.txt&username=user&signature={}", signature.replace('/', "%2F")));
    assert!(answer.text().contains("unknown user"), "{}", answer.text());
    let message = |answer: crate::common::Response| {
        assert_eq!(answer.status, 401);
        answer.json()["message"].as_str().expect("a message").to_owned()
    };
    assert_eq!(message(envd.get("/files?path=hello.txt")), "missing signature query parameter");
    assert_eq!(message(envd.get("/files?path=hello.txt&signature=v1_x")), "invalid signature");
    let link = envd_api::FileLink {
        path: "/etc/hostname",
        operation: envd_api::Operation::Read,
        username: "",
        expiration: Some(1),
    };
    let late = link.sign(token).replace('+', "%2B");
    let answer = envd.get(&format!("/files?path=/etc/hostname&signature_expiration=1&signature={late}"));
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json(), json!({"code": 401, "message": "signature is already expired"}));
    let wrong = envd.request("GET", "/files?path=/etc/hostname", &[("X-Access-Token", "no")], b"");
    assert_eq!(message(wrong), "access token present in header but does not match");
    assert_eq!(
        message(envd.request("POST", "/files/compose", &[], b"{}")).split(',').next(),
        Some("unauthorized access")
    );
    envd.token = Some(token.to_owned());
    assert_eq!(envd.get("/files?path=/etc/hostname").status, 200);
}

#[test]
fn composing() {
    let envd = Envd::start();
    let paths: Vec<_> = ["1", "2"].iter().map(|name| envd.path(name)).collect();
    for path in &paths {
        std::fs::write(path, format!("{}\n", path.file_name().expect("a name").display())).expect("written");
    }
    let destination = envd.path("d/all");
    let body = json!({"source_paths": paths, "destination": destination});
    let answer = envd.request("POST", "/files/compose", &[], body.to_string().as_bytes());
    assert_eq!(answer.json(), json!({"name": "all", "path": destination, "type": "file"}));
    assert_eq!(std::fs::read_to_string(&destination).expect("written"), "1\n2\n");
    assert!(paths.iter().all(|path| !path.exists()));
    let compose = |sources: serde_json::Value, destination: &std::path::Path| {
        let body = json!({"source_paths": sources, "destination": destination});
        envd.request("POST", "/files/compose", &[], body.to_string().as_bytes())
    };
    assert_eq!(compose(json!(paths), &destination).status, 404, "they are gone");
    for sources in [json!([]), json!([destination]), json!([envd.path("d")])] {
        assert_eq!(compose(sources.clone(), &destination).status, 400, "{sources}");
    }
    assert_eq!(compose(json!([destination]), &envd.path("d")).status, 400, "a directory");
    assert_eq!(compose(json!([destination]), std::path::Path::new("")).status, 400);
    assert_eq!(std::fs::read_to_string(&destination).expect("still there"), "1\n2\n");
    let left: Vec<_> = std::fs::read_dir(envd.path("d")).expect("listed").flatten().collect();
    assert_eq!(left.len(), 1, "no half-made file is left: {left:?}");
}

/// Returns the status for a client that sends all before it reads, like a proxy, and gives up if sending fails.
fn status_once_all_is_sent(
    envd: &Envd,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> u16 {
    let mut stream = std::net::TcpStream::connect(&envd.address).expect("envd listens");
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: envd\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
    stream.write_all(body).unwrap_or_else(|error| panic!("{target}: {error}"));
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("an answer");
    std::str::from_utf8(&status[9..]).expect("text").parse().expect("a number")
}

#[test]
fn a_refused_upload_gets_its_response_while_it_is_still_sent() {
    let envd = Envd::start();
    assert_eq!(envd.request("POST", "/init", &[], br#"{"accessToken": "right"}"#).status, 204);
    let content = vec![7; 32 << 20];
    for (target, headers, status) in [
        ("/files?path=/x&signature=v1_x", vec![RAW], 401),
        ("/files?path=/x&signature_expiration=soon", vec![FORM], 400),
        ("/files?path=/x", vec![RAW, ("X-Access-Token", "wrong")], 401),
        ("/files/compose", vec![], 401),
        ("/process.Process/SendInput", vec![("Content-Type", "application/json")], 401),
    ] {
        assert_eq!(status_once_all_is_sent(&envd, "POST", target, &headers, &content), status, "{target}");
    }
    for (method, target, mut headers, status) in [
        ("POST", "/files?path=/x&username=missing", vec![RAW], 401),
        ("POST", "/files?path=/x", vec![("Content-Type", "text/plain")], 400),
        ("POST", "/files?path=/x", vec![RAW, ("X-Metadata-Name", "\u{e9}")], 400),
        ("POST", "/files/compose", vec![], 413),
        ("PUT", "/files?path=/x", vec![RAW], 405),
        ("POST", "/nowhere", vec![], 404),
    ] {
        headers.push(("X-Access-Token", "right"));
        let got = status_once_all_is_sent(&envd, method, target, &headers, &content);
        assert_eq!(got, status, "{method} {target}");
    }
}
