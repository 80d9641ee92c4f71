//! The filesystem service with its watchers, over the wire.

use std::os::unix::fs::symlink;

use crate::common::Envd;
use serde_json::{Value, json};

const RAW: (&str, &str) = ("Content-Type", "application/octet-stream");

fn code(answer: &crate::common::Response) -> String {
    answer.json()["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn stat_make_move_list_remove() {
    let envd = Envd::start();
    let call = |method: &str, body: Value| envd.call(&format!("filesystem.Filesystem/{method}"), &body);
    let (dir, file) = (envd.path("a/b"), envd.path("f"));
    let made = call("MakeDir", json!({"path": dir}));
    assert_eq!(made.json()["entry"]["permissions"], "drwxr-xr-x");
    assert_eq!(made.json()["entry"]["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(code(&call("MakeDir", json!({"path": dir}))), "already_exists");
    std::fs::write(&file, "hello").expect("written");
    assert_eq!(code(&call("MakeDir", json!({"path": file}))), "invalid_argument");
    assert_eq!(code(&call("MakeDir", json!({"path": file.join("x")}))), "internal");

    let stat = call("Stat", json!({"path": file})).json();
    assert_eq!((stat["entry"]["size"].as_str(), stat["entry"]["mode"].as_u64()), (Some("5"), Some(0o644)));
    assert_eq!(stat["entry"]["owner"], "root");
    assert!(stat["entry"]["modifiedTime"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(code(&call("Stat", json!({"path": "/nope"}))), "not_found");

    let moved = call("Move", json!({"source": file, "destination": envd.path("new/g")}));
    assert_eq!(moved.json()["entry"]["name"], "g");
    assert_eq!(code(&call("Move", json!({"source": file, "destination": envd.path("h")}))), "not_found");

    symlink(envd.path("new"), envd.path("link")).expect("linked");
    let listed = call("ListDir", json!({"path": envd.path("link")})).json();
    assert_eq!(listed["entries"][0]["path"], json!(envd.path("link/g")));
    let link = call("Stat", json!({"path": envd.path("link")})).json();
    assert_eq!(
        (&link["entry"]["isSymlink"], &link["entry"]["type"]),
        (&json!(true), &json!("FILE_TYPE_DIRECTORY"))
    );
    assert_eq!(code(&call("ListDir", json!({"path": envd.path("new/g")}))), "invalid_argument");
    assert_eq!(code(&call("ListDir", json!({"path": "/nope"}))), "not_found");
    symlink(envd.path("loop"), envd.path("loop")).expect("linked");
    assert_eq!(code(&call("ListDir", json!({"path": envd.path("loop")}))), "failed_precondition");

    for _ in 0..2 {
        assert_eq!(call("Remove", json!({"path": envd.path("new")})).status, 200);
    }
    assert!(!envd.path("new").exists());
    // Only the link is removed, not its target.
    symlink(envd.path("a"), envd.path("to-a")).expect("linked");
    assert_eq!(call("Remove", json!({"path": envd.path("to-a")})).status, 200);
    assert!(dir.exists());
}

/// A sandbox's user can nest directories deeper than a stack has room, and than a path can name.
#[test]
fn trees_of_any_depth_are_listed_watched_and_removed() {
    let envd = Envd::start();
    let call = |method: &str, body: Value| envd.call(&format!("filesystem.Filesystem/{method}"), &body);
    // In memory: a disk's journal takes minutes for this.
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let deep = dir.path().join("deep");
    std::fs::create_dir(&deep).expect("made");
    let mut deepest = walk::open_dir(rustix::fs::CWD, &deep).expect("opened");
    for _ in 0..100_000 {
        rustix::fs::mkdirat(&deepest, "d", rustix::fs::Mode::from_raw_mode(0o755)).expect("made");
        deepest = walk::open_dir(&deepest, "d").expect("opened");
    }
    drop(deepest);

    let listed = call("ListDir", json!({"path": deep, "depth": 200_000}));
    assert_eq!(listed.status, 200);
    let count = listed.json()["entries"].as_array().map_or(0, Vec::len);
    assert!((1900..2100).contains(&count), "{count} entries have a path");
    let watcher = call("CreateWatcher", json!({"path": deep, "recursive": true}));
    assert_eq!(watcher.status, 200, "{}", watcher.json());
    let removed = call("RemoveWatcher", json!({"watcherId": watcher.json()["watcherId"]}));
    assert_eq!(removed.status, 200);
    assert_eq!(call("Remove", json!({"path": deep})).status, 200);
    assert!(!deep.exists());
}

fn kinds(events: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().map(|e| (text(&e["name"]), text(&e["type"]).replace("EVENT_TYPE_", ""))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
}

#[test]
fn polled_watching() {
    let envd = Envd::start();
    let request = json!({"path": envd.dir.path(), "recursive": true, "includeEntry": true});
    let id = envd.call("filesystem.Filesystem/CreateWatcher", &request).json()["watcherId"].clone();
    let events = || {
        envd.call("filesystem.Filesystem/GetWatcherEvents", &json!({"watcherId": id})).json()["events"]
            .clone()
    };
    let upload = |name: &str| {
        let target = format!("/files?path={}", envd.path(name).display());
        assert_eq!(envd.request("POST", &target, &[RAW], b"x").status, 200);
    };
    upload("f");
    let seen = events();
    assert_eq!(kinds(&seen), pairs(&[("f", "CREATE"), ("f", "CHMOD"), ("f", "WRITE")]));
    assert_eq!(seen[0]["entry"]["name"], "f");
    upload("d/e/g");
    let seen = kinds(&events());
    for name in ["d", "d/e", "d/e/g"] {
        let created = seen.iter().filter(|(n, kind)| n == name && kind == "CREATE").count();
        assert_eq!(created, 1, "{name} in {seen:?}");
    }
    std::fs::rename(envd.path("f"), envd.path("d/f")).expect("moved");
    std::fs::remove_file(envd.path("d/f")).expect("removed");
    assert_eq!(kinds(&events()), pairs(&[("f", "RENAME"), ("d/f", "CREATE"), ("d/f", "REMOVE")]));
    assert_eq!(envd.call("filesystem.Filesystem/RemoveWatcher", &json!({"watcherId": id})).status, 200);
    let gone = envd.call("filesystem.Filesystem/GetWatcherEvents", &json!({"watcherId": id}));
    assert_eq!(code(&gone), "not_found");
}

#[test]
fn streamed_watching() {
    let envd = Envd::start();
    let mut events = envd.stream("filesystem.Filesystem/WatchDir", &[], &json!({"path": envd.dir.path()}));
    assert_eq!(events.next(), Some(json!({"start": {}})));
    let target = format!("/files?path={}", envd.path("f").display());
    assert_eq!(envd.request("POST", &target, &[RAW], b"x").status, 200);
    for kind in ["CREATE", "CHMOD", "WRITE"] {
        let event = json!({"filesystem": {"name": "f", "type": format!("EVENT_TYPE_{kind}")}});
        assert_eq!(events.next(), Some(event));
    }
    let error = envd.stream("filesystem.Filesystem/WatchDir", &[], &json!({"path": "/nope"})).error();
    assert_eq!(error.0, "not_found");
    let error = envd.stream("filesystem.Filesystem/WatchDir", &[], &json!({"path": envd.path("f")})).error();
    assert_eq!(error.0, "invalid_argument");
}

/// 1 + 100 directories and 10,000 files, as fast as a shell can.
fn make_ten_thousand(envd: &Envd) {
    let script = format!(
        "cd {} && for d in $(seq 100); do mkdir -p t/$d && touch t/$d/$(seq -s ' t/'$d/ 100); done",
        envd.dir.path().display()
    );
    let request = json!({"process": {"cmd": "/bin/bash", "args": ["-c", script]}});
    assert_eq!(envd.start_with(&[], &request).finish().end["exited"], true);
}

#[test]
fn a_burst_is_streamed_completely_to_a_slow_reader() {
    let envd = Envd::start();
    let request = json!({"path": envd.dir.path(), "recursive": true});
    let mut events = envd.stream("filesystem.Filesystem/WatchDir", &[], &request);
    assert_eq!(events.next(), Some(json!({"start": {}})));
    // Nothing is read before all events have happened.
    make_ten_thousand(&envd);
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 1 + 100 + 10_000 {
        let event = events.next().unwrap_or_else(|| panic!("ended after {}: {:?}", seen.len(), events.end));
        if event["filesystem"]["type"] == "EVENT_TYPE_CREATE" {
            let name = event["filesystem"]["name"].as_str().expect("a name").to_owned();
            assert!(seen.insert(name), "{event} twice");
        }
    }
}

#[test]
fn a_burst_is_polled_completely() {
    let envd = Envd::start();
    let request = json!({"path": envd.dir.path(), "recursive": true});
    let id = envd.call("filesystem.Filesystem/CreateWatcher", &request).json()["watcherId"].clone();
    make_ten_thousand(&envd);
    let mut seen = std::collections::HashSet::new();
    loop {
        let events = envd.call("filesystem.Filesystem/GetWatcherEvents", &json!({"watcherId": id})).json();
        let events = kinds(&events["events"]);
        if events.is_empty() {
            break;
        }
        for (name, kind) in events {
            assert!(kind != "CREATE" || seen.insert(name.clone()), "{name} twice");
        }
    }
    assert_eq!(seen.len(), 1 + 100 + 10_000);
}

#[test]
fn the_first_sdks_get_entries_that_they_can_parse() {
    let envd = Envd::start();
    std::fs::write(envd.path("f"), "x").expect("written");
    let ask = |agent: &str| {
        let headers = [("Content-Type", "application/json"), ("User-Agent", agent)];
        let body = json!({"path": envd.dir.path()}).to_string();
        envd.request("POST", "/filesystem.Filesystem/ListDir", &headers, body.as_bytes())
    };
    let old = ask("connect-python");
    assert_eq!(old.header("x-e2b-legacy-sdk"), Some("true"));
    let entry = json!({"name": "f", "type": "FILE_TYPE_FILE", "path": envd.path("f")});
    assert_eq!(old.json(), json!({"entries": [entry]}));
    let new = ask("connect-python/0.5");
    assert_eq!(new.header("x-e2b-legacy-sdk"), None);
    assert_eq!(new.json()["entries"][0]["size"], "1");
}

#[test]
fn a_silent_watch_sends_keepalives() {
    let envd = Envd::start();
    let headers = [("Keepalive-Ping-Interval", "1")];
    let mut events =
        envd.stream("filesystem.Filesystem/WatchDir", &headers, &json!({"path": envd.dir.path()}));
    assert_eq!(events.next(), Some(json!({"start": {}})));
    assert_eq!(events.next(), Some(json!({"keepalive": {}})));
}
