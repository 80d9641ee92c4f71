//! The process service, over the wire.

use std::io::{Read, Write};

use crate::common::{Envd, base64, by_pid};
use serde_json::json;

#[test]
fn reports_both_outputs_and_the_exit_code() {
    let envd = Envd::start();
    let finished = envd.shell("echo out; echo err >&2; exit 3").finish();
    assert_eq!((finished.stdout.as_slice(), finished.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let end = json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"});
    assert_eq!(finished.end, end);
    let finished = envd.shell("true").finish();
    assert_eq!(finished.end, json!({"exited": true, "status": "exit status 0"}));
}

#[test]
fn a_missing_program_ends_with_127() {
    let envd = Envd::start();
    for (cmd, code) in
        [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126), ("/tmp", 126)]
    {
        let mut events = envd.start_with(&[], &json!({"process": {"cmd": cmd}}));
        assert!(events.pid() > 0);
        let finished = events.finish();
        assert_eq!(finished.end["exitCode"], code, "{cmd}");
        assert!(String::from_utf8_lossy(&finished.stderr).contains(cmd));
    }
}

#[test]
fn the_environment_is_not_inherited() {
    let mut envd = Envd::start();
    let init = json!({"envVars": {"A": "1", "B": "1", "E2B_SANDBOX": "no"}, "sandboxID": "sbx", "templateID": "tpl",
        "teamID": "team", "accessToken": "secret"});
    assert_eq!(envd.request("POST", "/init", &[], init.to_string().as_bytes()).status, 204);
    envd.token = Some("secret".to_owned());
    let request = json!({"process": {"cmd": "env", "envs": {"B": "2", "HOME": "/x"}}});
    let finished = envd.start_with(&[], &request).finish();
    let mut lines: Vec<_> = finished.out().lines().filter(|line| !line.starts_with("PATH=")).collect();
    lines.sort_unstable();
    let expected = [
        "A=1",
        "B=2",
        "E2B_SANDBOX=true",
        "E2B_SANDBOX_ID=sbx",
        "E2B_TEAM_ID=team",
        "E2B_TEMPLATE_ID=tpl",
        "HOME=/x",
        "LOGNAME=root",
        "USER=root",
    ];
    assert_eq!(lines, expected);
    let markers = envd.path("system/run/e2b");
    assert_eq!(std::fs::read_to_string(markers.join(".E2B_SANDBOX_ID")).expect("written"), "sbx");
}

#[test]
fn starts_in_the_requested_directory() {
    let envd = Envd::start();
    let dir = envd.dir.path().canonicalize().expect("a path");
    let finished = envd.start_with(&[], &json!({"process": {"cmd": "pwd", "cwd": dir}})).finish();
    assert_eq!(finished.out().trim(), dir.to_str().expect("text"));
    let error = envd.start_with(&[], &json!({"process": {"cmd": "pwd", "cwd": "/nope"}})).error();
    assert_eq!(error, ("invalid_argument".to_owned(), "cwd '/nope' does not exist".to_owned()));
    let error = envd.start_with(&[], &json!({"process": {"cmd": "pwd", "cwd": "/etc/passwd"}})).error();
    assert_eq!(error.0, "invalid_argument");
    let error = envd.start_with(&[], &json!({"process": {"cmd": "pwd", "cwd": "~other"}})).error();
    assert_eq!(error.0, "invalid_argument");
}

#[test]
fn acts_as_the_named_user() {
    let envd = Envd::start();
    let nobody = format!("Basic {}", base64("nobody:"));
    let request = json!({"process": {"cmd": "id", "args": ["-un"], "cwd": "/"}});
    let finished = envd.start_with(&[("Authorization", &nobody)], &request).finish();
    assert_eq!(finished.out(), "nobody\n");
    let missing = format!("Basic {}", base64("missing:"));
    let error = envd.start_with(&[("Authorization", &missing)], &request).error();
    assert_eq!(error, ("unauthenticated".to_owned(), "invalid username: 'missing'".to_owned()));
}

#[test]
fn input_reaches_the_process_in_order() {
    let envd = Envd::start();
    let mut events = envd.start_with(&[], &json!({"process": {"cmd": "cat"}, "tag": "cat"}));
    let pid = events.pid();
    let input = |text: &str| json!({"process": by_pid(pid), "input": {"stdin": base64(text)}});
    assert_eq!(envd.call("process.Process/SendInput", &input("one ")).status, 200);
    assert_eq!(events.until("one "), "one ");
    let mut stream = envd.stream_of(
        "process.Process/StreamInput",
        &[],
        &[
            json!({"start": {"process": {"tag": "cat"}}}),
            json!({"data": {"input": {"stdin": base64("two ")}}}),
            json!({"keepalive": {}}),
            json!({"data": {"input": {"stdin": base64("three")}}}),
        ],
    );
    assert_eq!(stream.next(), Some(json!({})));
    assert_eq!(stream.next(), None);
    assert_eq!(stream.end, Some(json!({})));
    assert_eq!(envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)})).status, 200);
    assert_eq!(events.finish().out(), "two three");
    let answer = envd.call("process.Process/SendInput", &input("late"));
    assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some("not_found")));
}

#[test]
fn input_for_an_unknown_process_is_refused_before_it_ends() {
    let envd = Envd::start();
    let mut stream = std::net::TcpStream::connect(&envd.address).expect("envd listens");
    let message = json!({"start": {"process": by_pid(1 << 30)}}).to_string();
    // One envelope in a chunk, and no last chunk: clients may keep such a stream open.
    let head = "POST /process.Process/StreamInput HTTP/1.1\r\nHost: envd\r\nContent-Type: application/connect+json\r\n\
                Connect-Protocol-Version: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let envelope = [&[0], &length[..], message.as_bytes()].concat();
    let chunk = [format!("{:x}\r\n", envelope.len()).as_bytes(), &envelope, b"\r\n"].concat();
    stream.write_all(&[head.as_bytes(), &chunk].concat()).expect("sent");
    let mut answer = Vec::new();
    while memchr::memmem::find(&answer, b"not_found").is_none() {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).expect("an answer");
        assert!(read > 0, "{}", answer.escape_ascii());
        answer.extend(&piece[..read]);
    }
}

#[test]
fn closing_input_twice_is_no_error() {
    let envd = Envd::start();
    let mut events =
        envd.start_with(&[], &json!({"process": {"cmd": "sh", "args": ["-c", "cat; echo eof; sleep 60"]}}));
    let pid = events.pid();
    for _ in 0..2 {
        assert_eq!(envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)})).status, 200);
    }
    events.until("eof");
    let answer =
        envd.call("process.Process/SendInput", &json!({"process": by_pid(pid), "input": {"stdin": ""}}));
    assert_eq!(answer.json()["message"], "error writing to stdin: stdin not enabled or closed");
}

#[test]
fn input_without_a_pipe_is_an_error() {
    let envd = Envd::start();
    let mut events = envd.shell("sleep 60");
    let pid = events.pid();
    let answer =
        envd.call("process.Process/SendInput", &json!({"process": by_pid(pid), "input": {"stdin": "YQ=="}}));
    assert_eq!(answer.json()["code"], "internal");
    let answer =
        envd.call("process.Process/SendInput", &json!({"process": by_pid(pid), "input": {"pty": "YQ=="}}));
    assert_eq!(answer.json()["code"], "internal");
    let answer = envd.call(
        "process.Process/Update",
        &json!({"process": by_pid(pid), "pty": {"size": {"cols": 1, "rows": 1}}}),
    );
    assert_eq!(answer.json()["code"], "internal");
    let mut stream =
        envd.stream_of("process.Process/StreamInput", &[], &[json!({"start": {"process": by_pid(1 << 30)}})]);
    assert_eq!(stream.error().0, "not_found");
}

#[test]
fn signals_end_a_process_and_its_end_is_remembered() {
    let envd = Envd::start();
    for (signal, status) in [("SIGNAL_SIGKILL", "signal: killed"), ("SIGNAL_SIGTERM", "signal: terminated")] {
        // The grandchild keeps the pipes open: the end of a signalled process is delivered nevertheless.
        let mut events = envd.shell("sleep 60 & echo ready; wait");
        let pid = events.pid();
        events.until("ready");
        let request = json!({"process": by_pid(pid), "signal": signal});
        assert_eq!(envd.call("process.Process/SendSignal", &request).status, 200);
        let end = events.finish().end;
        assert_eq!(end, json!({"exitCode": -1, "status": status, "error": status}));
        let mut late = envd.stream("process.Process/Connect", &[], &json!({"process": by_pid(pid)}));
        assert_eq!(late.pid(), pid);
        assert_eq!(late.finish().end, end);
        let answer = envd.call("process.Process/SendSignal", &request);
        assert_eq!(answer.json()["code"], "not_found");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "reaped");
    }
    let answer = envd
        .call("process.Process/SendSignal", &json!({"process": by_pid(1), "signal": "SIGNAL_UNSPECIFIED"}));
    assert_eq!(answer.status, 501);
}

#[test]
fn a_timeout_ends_the_process_and_the_stream() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sleep", "args": ["60"]}, "tag": "sleeper"});
    let mut events = envd.start_with(&[("Connect-Timeout-Ms", "300")], &request);
    let pid = events.pid();
    assert_eq!(events.error().0, "deadline_exceeded");
    let mut late = envd.stream("process.Process/Connect", &[], &json!({"process": {"tag": "sleeper"}}));
    assert_eq!(late.pid(), pid);
    assert_eq!(late.finish().end["status"], "signal: killed");
}

#[test]
fn a_timeout_of_connect_does_not_end_the_process() {
    let envd = Envd::start();
    let mut events = envd.start_with(&[], &json!({"process": {"cmd": "cat"}}));
    let pid = events.pid();
    let mut other = envd.stream(
        "process.Process/Connect",
        &[("Connect-Timeout-Ms", "100")],
        &json!({"process": by_pid(pid)}),
    );
    assert_eq!(other.error().0, "deadline_exceeded");
    assert_eq!(envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)})).status, 200);
    assert_eq!(events.finish().end["status"], "exit status 0");
}

#[test]
fn several_subscribers_and_none() {
    let envd = Envd::start();
    let mut first = envd.start_with(&[], &json!({"process": {"cmd": "cat"}, "tag": "x"}));
    let pid = first.pid();
    let mut second = envd.stream("process.Process/Connect", &[], &json!({"process": {"tag": "x"}}));
    assert_eq!(second.pid(), pid);
    let input = |text: &str| json!({"process": by_pid(pid), "input": {"stdin": base64(text)}});
    envd.call("process.Process/SendInput", &input("hello"));
    assert_eq!((first.until("hello").as_str(), second.until("hello").as_str()), ("hello", "hello"));
    drop((first, second));
    // Far more than pipes and queues hold: without a reader the process must not block.
    let lots = "x".repeat(1 << 20);
    for _ in 0..4 {
        assert_eq!(envd.call("process.Process/SendInput", &input(&lots)).status, 200);
    }
    let mut third = envd.stream("process.Process/Connect", &[], &json!({"process": by_pid(pid)}));
    assert_eq!(third.pid(), pid);
    envd.call("process.Process/SendInput", &input("END"));
    third.until("END");
    envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)}));
    assert_eq!(third.finish().end["status"], "exit status 0");
}

#[test]
fn a_slow_reader_loses_nothing() {
    let envd = Envd::start();
    let mut events = envd.shell("seq 1 400000; echo done >&2");
    events.pid();
    // Another process runs to its end while the output of this one is not read.
    assert_eq!(envd.shell("echo other").finish().out(), "other\n");
    let finished = events.finish();
    let mut lines = finished.out().lines();
    assert!((1..=400_000).all(|n| lines.next() == Some(n.to_string().as_str())));
    assert_eq!(lines.next(), None);
}

#[test]
fn lists_live_processes_with_their_start_requests() {
    let envd = Envd::start();
    let config = json!({"cmd": "sleep", "args": ["60"], "envs": {"A": "b"}, "cwd": "/"});
    let mut events = envd.start_with(&[], &json!({"process": config, "tag": "t"}));
    let pid = events.pid();
    let listed = envd.call("process.Process/List", &json!({})).json();
    assert_eq!(listed, json!({"processes": [{"config": config, "pid": pid, "tag": "t"}]}));
    let error = envd.start_with(&[], &json!({"process": {"cmd": "true"}, "tag": "t"})).error();
    assert_eq!(error.0, "already_exists");
    // Other processes with tags must not hide this one.
    let mut others: Vec<_> = (0..5)
        .map(|n| envd.start_with(&[], &json!({"process": {"cmd": "cat"}, "tag": format!("o{n}")})))
        .collect();
    others.iter_mut().for_each(|events| assert!(events.pid() > 0));
    envd.call("process.Process/SendSignal", &json!({"process": {"tag": "t"}, "signal": 9}));
    assert_eq!(events.finish().end["status"], "signal: killed");
    let listed = envd.call("process.Process/List", &json!({})).json();
    assert_eq!(listed["processes"].as_array().map(Vec::len), Some(5));
}

#[test]
fn keepalives_are_sent_at_the_requested_interval() {
    let envd = Envd::start();
    let mut events =
        envd.start_with(&[("Keepalive-Ping-Interval", "1")], &json!({"process": {"cmd": "cat"}}));
    let pid = events.pid();
    assert_eq!(events.next(), Some(json!({"event": {"keepalive": {}}})));
    envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)}));
    assert_eq!(events.finish().end["exited"], true);
}

#[test]
fn terminals_have_size_and_job_control() {
    let envd = Envd::start();
    let request = json!({
        "process": {"cmd": "/bin/sh", "args": ["-i"], "envs": {"TERM": "xterm-256color", "PS1": "> "}},
        "pty": {"size": {"cols": 80, "rows": 24}},
    });
    let mut events = envd.start_with(&[], &request);
    let pid = events.pid();
    let input = |text: &str| {
        let request = json!({"process": by_pid(pid), "input": {"pty": base64(text)}});
        assert_eq!(envd.call("process.Process/SendInput", &request).status, 200);
    };
    input("tty && stty size\n");
    events.until("24 80");
    let resize = json!({"process": by_pid(pid), "pty": {"size": {"cols": 132, "rows": 50}}});
    assert_eq!(envd.call("process.Process/Update", &resize).status, 200);
    input("stty size; echo opened-$((40+2)) > /dev/tty\n");
    let output = events.until("opened-42");
    assert!(output.contains("50 132"), "{output}");
    // Job control: an interrupt at the terminal ends the foreground command, not the shell.
    input("sh -c 'echo started-$((40+2)); sleep 60'\n");
    events.until("started-42");
    input("\u{3}");
    input("echo alive-$((1+1))\n");
    events.until("alive-2");
    assert_eq!(
        envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)})).json()["code"],
        "unknown"
    );
    input("exit 5\n");
    assert_eq!(events.finish().end["exitCode"], 5);
}

#[test]
fn five_hundred_at_once() {
    let envd = Envd::start();
    let all: Vec<_> = (0..500)
        .map(|n| {
            let mut events = envd.start_with(&[], &json!({"process": {"cmd": "cat"}, "tag": format!("{n}")}));
            let pid = events.pid();
            (n, pid, events)
        })
        .collect();
    let listed = envd.call("process.Process/List", &json!({})).json();
    assert_eq!(listed["processes"].as_array().map(Vec::len), Some(500));
    for (n, pid, mut events) in all {
        let input =
            json!({"process": {"tag": format!("{n}")}, "input": {"stdin": base64(&format!("I am {n}"))}});
        assert_eq!(envd.call("process.Process/SendInput", &input).status, 200);
        assert_eq!(envd.call("process.Process/CloseStdin", &json!({"process": by_pid(pid)})).status, 200);
        assert_eq!(events.finish().out(), format!("I am {n}"));
    }
    assert_eq!(envd.call("process.Process/List", &json!({})).json(), json!({}));
}

#[test]
fn a_timeout_ends_the_process_of_a_client_that_has_gone() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sleep", "args": ["60"]}, "tag": "left"});
    let mut events = envd.start_with(&[("Connect-Timeout-Ms", "500")], &request);
    let pid = events.pid();
    drop(events);
    let mut late = envd.stream("process.Process/Connect", &[], &json!({"process": {"tag": "left"}}));
    assert_eq!((late.pid(), late.finish().end["status"].as_str()), (pid, Some("signal: killed")));
}

#[test]
fn unknown_users_are_refused_by_every_method() {
    let envd = Envd::start();
    let missing = format!("Basic {}", base64("missing:"));
    let said = json!({"code": "unauthenticated", "message": "invalid username: 'missing'"});
    for method in [
        "process.Process/List",
        "process.Process/SendInput",
        "process.Process/SendSignal",
        "process.Process/CloseStdin",
        "process.Process/Update",
        "filesystem.Filesystem/Stat",
        "filesystem.Filesystem/GetWatcherEvents",
        "filesystem.Filesystem/RemoveWatcher",
    ] {
        let headers = [("Content-Type", "application/json"), ("Authorization", missing.as_str())];
        let answer = envd.request("POST", &format!("/{method}"), &headers, b"{}");
        assert_eq!((answer.status, answer.json()), (401, said.clone()), "{method}");
    }
    let mut stream = envd.stream(
        "process.Process/Connect",
        &[("Authorization", missing.as_str())],
        &json!({"process": by_pid(1)}),
    );
    assert_eq!(stream.error().0, "unauthenticated");
    assert_eq!(envd.request("GET", "/health", &[("Authorization", &missing)], b"").status, 401);
}

#[test]
fn invalid_requests_are_rejected() {
    let envd = Envd::start();
    let answer = envd.request("POST", "/process.Process/List", &[("Content-Type", "application/json")], b"{");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("invalid_argument")));
    assert_eq!(envd.start_with(&[], &json!({})).error().0, "invalid_argument");
    assert_eq!(envd.start_with(&[], &json!({"process": {"cmd": "a\0b"}})).error().0, "invalid_argument");
    let answer = envd.call("process.Process/SendSignal", &json!({"signal": 9}));
    assert_eq!(answer.status, 501);
    assert_eq!(envd.call("process.Process/Nope", &json!({})).status, 404);
}
