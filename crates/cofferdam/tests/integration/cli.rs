//! The command line against a real server: what it prints, what it exits with, and that a terminal is put back.
//! Sandboxes are real; see `common` for what is needed.
//! `quickstart` is run as a newcomer would, twice.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::common::{BINARY, Server, assert_nothing_left, terminate, text, variable};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

impl Server {
    fn create(&self, arguments: &[&str]) -> String {
        let made = self.cli(&[&["sandbox", "create"], arguments].concat());
        assert!(made.status.success(), "{made:?}");
        text(&made.stdout).trim().to_owned()
    }
}

#[test]
fn sandboxes_from_the_command_line() {
    let server = Server::start();
    let id = server.create(&["base", "--timeout", "600", "--metadata", "job=one", "--env", "A=b c"]);
    let other = server.create(&[]);

    let listed = server.cli(&["sandbox", "list", "--json", "--metadata", "job=one"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["sandboxID"], id);
    let table = text(&server.cli(&["sandbox", "list"]).stdout);
    assert!(table.starts_with("ID ") && table.contains(&id) && table.contains(&other), "{table}");

    let run = server.cli(&["sandbox", "exec", &id, "--", "echo $A; echo oops >&2; exit 42"]);
    assert_eq!((text(&run.stdout), text(&run.stderr)), ("b c\n".into(), "oops\n".into()));
    assert_eq!(run.status.code(), Some(42));
    let run = server
        .cli(&["sandbox", "exec", "--user", "root", "--cwd", "/tmp", &id, "printf", "%s,", "a b", "$A"]);
    assert_eq!(text(&run.stdout), "a b,$A,");
    assert_eq!(server.cli(&["sandbox", "exec", &id, "kill -9 $$"]).status.code(), Some(137));
    let gone = server.cli(&["sandbox", "exec", "nosuch", "true"]);
    assert!(!gone.status.success() && text(&gone.stderr).contains("nosuch"), "{gone:?}");
    let no_terminal = server.cli(&["sandbox", "connect", &id]);
    assert!(!no_terminal.status.success() && text(&no_terminal.stderr).contains("exec"));

    assert_eq!(text(&server.cli(&["sandbox", "kill", &id]).stdout).trim(), id);
    assert!(!server.cli(&["sandbox", "kill", &id]).status.success());
    let events = text(&server.cli(&["sandbox", "events", &id]).stdout);
    assert!(events.contains(" created") && events.contains(" killed   request"), "{events}");
    assert_eq!(text(&server.cli(&["sandbox", "kill", "--all"]).stdout).trim(), other);
}

#[test]
fn input_and_interrupts_reach_the_command() {
    let server = Server::start();
    let id = server.create(&[]);
    let mut count = server
        .command(&["sandbox", "exec", &id, "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    count.stdin.take().unwrap().write_all(&vec![7; 3_000_000]).unwrap();
    assert_eq!(text(&count.wait_with_output().unwrap().stdout).trim(), "3000000");

    let mut sleeper = server
        .command(&["sandbox", "exec", &id, "echo up; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    sleeper.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    kill_process(Pid::from_child(&sleeper), Signal::INT).unwrap();
    assert_eq!(sleeper.wait().unwrap().code(), Some(137));
    let left = server.cli(&["sandbox", "exec", &id, "pgrep", "sleep"]);
    assert_eq!(text(&left.stdout), "");
}

#[test]
fn a_terminal_works_and_is_put_back() {
    let server = Server::start();
    let id = server.create(&[]);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let window = |cols, rows| Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, window(93, 31)).unwrap();
    let before = format!("{:?}", tcgetattr(&slave).unwrap());
    let mut shell = server
        .command(&["sandbox", "connect", &id])
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut terminal = fs::File::from(master);
    terminal.write_all(b"stty size\n").unwrap();
    read_until(&mut terminal, "31 93");
    tcsetwinsize(&terminal, window(111, 22)).unwrap();
    kill_process(Pid::from_child(&shell), Signal::WINCH).unwrap();
    // The new size travels on its own request: asked for until it is there.
    terminal.write_all(b"until [ \"$(stty size)\" = '22 111' ]; do :; done; echo re''sized\n").unwrap();
    read_until(&mut terminal, "resized");
    terminal.write_all(b"exit 5\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(5));
    assert_eq!(format!("{:?}", tcgetattr(&slave).unwrap()), before);
}

fn read_until(terminal: &mut fs::File, wanted: &str) {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(wanted) {
        let count = terminal.read(&mut buffer).expect("it is open");
        seen.push_str(&text(&buffer[..count]));
    }
}

#[test]
fn keys_from_the_command_line() {
    let server = Server::start();
    let made = server.cli(&["key", "create", "--name", "second", "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let list = |key: &str| {
        let status = server.command(&["sandbox", "list"]).env("E2B_API_KEY", key).output().unwrap().status;
        status.success()
    };
    assert!(list(key));
    let table = text(&server.cli(&["key", "list"]).stdout);
    assert!(table.contains(id) && table.contains("second") && !table.contains(key), "{table}");
    assert!(server.cli(&["key", "delete", id]).status.success());
    assert!(!list(key));
    assert!(!server.cli(&["key", "delete", id]).status.success());
}

#[test]
fn teams_from_the_command_line() {
    let server = Server::start();
    let team = text(&server.cli(&["team", "create", "Data Science", "--max-sandboxes", "3"]).stdout);
    let team = team.trim();
    let key = text(&server.cli(&["key", "create", "--team", team]).stdout);
    let list =
        || server.command(&["sandbox", "list"]).env("E2B_API_KEY", key.trim()).output().unwrap().status;
    assert!(list().success());
    let table = text(&server.cli(&["team", "list"]).stdout);
    assert!(table.contains(team) && table.contains("data-science"), "{table}");
    let updated = server.cli(&["team", "update", team, "--ban", "--max-vcpu", "4", "--json"]);
    let updated: serde_json::Value = serde_json::from_slice(&updated.stdout).unwrap();
    assert_eq!(
        (&updated["limits"]["maxVCPU"], &updated["limits"]["concurrentSandboxes"]),
        (&4.into(), &3.into())
    );
    assert!(!list().success());
    assert!(server.cli(&["team", "update", team, "--admit"]).status.success());
    assert!(list().success());
    assert_eq!(text(&server.cli(&["team", "kill", team]).stdout).trim(), "0 sandboxes were killed");
    assert!(!server.cli(&["team", "update", team, "--ban", "--admit"]).status.success());
}

#[test]
fn quickstart_is_harmless_twice() {
    let data = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let quickstart = |listen: &str| {
        let mut command = Command::new(BINARY);
        command.args(["quickstart", "--listen", listen, "--data-dir"]).arg(data.path());
        command.arg("--layers-dir").arg(variable("COFFERDAM_LAYERS"));
        command.arg("--envd").arg(variable("COFFERDAM_ENVD")).output().unwrap()
    };

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = quickstart(&taken.local_addr().unwrap().to_string());
    assert!(!refused.status.success() && text(&refused.stderr).contains("--listen"), "{refused:?}");

    let listen = format!("127.0.0.1:{port}");
    let first = quickstart(&listen);
    assert!(first.status.success(), "{first:?}");
    let shown = text(&first.stdout);
    let exports = |shown: &str| -> Vec<String> {
        shown.lines().filter(|line| line.starts_with("export ")).map(str::to_owned).collect()
    };
    let lines = exports(&shown);
    assert!(lines[0].starts_with("export E2B_API_KEY=e2b_"), "{shown}");
    assert_eq!(lines[1], format!("export E2B_API_URL=http://localhost:{port}"));
    assert_eq!(lines[2], format!("export E2B_SANDBOX_URL=http://localhost:{port}"));
    assert!(shown.contains("Hello from user@") && shown.contains("isolation: "), "{shown}");
    let stop = shown.split("kill ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let pid: u32 = stop.parse().unwrap();

    let second = quickstart(&listen);
    assert!(second.status.success(), "{second:?}");
    assert_eq!(exports(&text(&second.stdout)), lines);
    let key = data.path().join("quickstart-key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    // Without variables the commands find the server and the key of this machine.
    let mut list = Command::new(BINARY);
    list.args(["sandbox", "list", "--data-dir"]).arg(data.path());
    for name in ["E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN"] {
        list.env_remove(name);
    }
    let list = list.output().unwrap();
    assert!(list.status.success() && text(&list.stderr).contains("no sandboxes"), "{list:?}");
    terminate(pid);
    assert_nothing_left(data.path());
}

#[test]
fn doctor_starts_a_sandbox() {
    let data = tempfile::tempdir().unwrap();
    let mut doctor = Command::new(BINARY);
    doctor.args(["doctor", "--json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
    doctor
        .arg("--layers-dir")
        .arg(variable("COFFERDAM_LAYERS"))
        .arg("--envd")
        .arg(variable("COFFERDAM_ENVD"));
    let output = doctor.output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let probe = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "probe").unwrap();
    assert_eq!(probe["status"], "ok", "{findings:#}");
    assert!(probe["detail"].as_str().unwrap().contains("taken and restored"), "{findings:#}");
    let microvm = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "microvm").unwrap();
    assert!(["ok", "warning"].contains(&microvm["status"].as_str().unwrap()), "{findings:#}");
    assert!(output.status.success(), "{findings:#}");

    let mut doctor = Command::new(BINARY);
    let output =
        doctor.args(["doctor", "--envd", "/nowhere", "--data-dir"]).arg(data.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("FAILURE"));
}

#[test]
fn completions_name_our_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(BINARY).args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("quickstart"));
    }
}
