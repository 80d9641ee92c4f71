//! Pause, resume, snapshots, forks and rollback through the Rust SDK and from the command line.
//! Sandboxes are real, CRIU included; see `common` for what is needed.
//! Waits end with an event or the test runner's limit, never after a while.

use std::time::Duration;

use crate::common::{Server, text};
use cofferdam_client::{
    CreateOptions, Error, OnTimeout, PauseOptions, RunOptions, Sandbox, SandboxState, SnapshotFilter,
    SnapshotOptions,
};

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

impl Server {
    /// Runs a command line that must work, and returns its words.
    fn ids(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.cli(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output.stdout).split_whitespace().map(str::to_owned).collect()
    }
}

async fn said(sandbox: &Sandbox, command: &str) -> String {
    let run = sandbox.commands().run(command, RunOptions::default()).await;
    run.expect("it runs").stdout_text()
}

#[tokio::test]
async fn memory_survives_a_pause_and_not_a_reboot() {
    let server = Server::start_with(&["--keep-frozen-max", "0"]);
    let client = server.client();
    let sandbox = server.sandbox().await;
    let sleeper = sandbox.commands().start("sleep 1000", RunOptions::default()).await.unwrap().pid();
    sandbox.files().write("note", "kept").await.unwrap();
    let boot = said(&sandbox, BOOT).await;

    assert!(sandbox.pause(PauseOptions::default()).await.unwrap());
    assert!(!sandbox.pause(PauseOptions::default()).await.unwrap(), "it is paused already");
    assert!(!sandbox.is_running().await.unwrap());
    assert_eq!(sandbox.info().await.unwrap().state, SandboxState::Paused);
    assert!(matches!(sandbox.snapshot(&SnapshotOptions::default()).await, Err(Error::Conflict(_))));
    let resumed = Sandbox::connect(&client, sandbox.id(), None).await.unwrap();
    assert!(resumed.commands().list().await.unwrap().iter().any(|process| process.pid == sleeper));
    assert_eq!(said(&sandbox, BOOT).await, boot, "the handle from before is good");

    sandbox.pause(PauseOptions::default()).await.unwrap();
    let rebooted = Sandbox::reboot(&client, sandbox.id(), None).await.unwrap();
    assert_ne!(said(&rebooted, BOOT).await, boot);
    assert_eq!(said(&rebooted, "cat note").await, "kept");
    let files_only = PauseOptions { memory: false, ..PauseOptions::default() };
    assert!(sandbox.pause(files_only).await.unwrap());
    Sandbox::connect(&client, sandbox.id(), None).await.unwrap();
    assert_eq!(said(&sandbox, "cat note").await, "kept");
    assert!(matches!(
        Sandbox::pause_by_id(&client, "nosuch", PauseOptions::default()).await,
        Err(Error::NotFound(_))
    ));
}

#[tokio::test]
async fn snapshots_forks_and_the_way_back() {
    let server = Server::start();
    let client = server.client();
    let sandbox = server.sandbox().await;
    sandbox.files().write("note", "then").await.unwrap();
    let named = SnapshotOptions { name: Some("point:one".into()), ..SnapshotOptions::default() };
    let snapshot = sandbox.snapshot(&named).await.unwrap();
    assert!(snapshot.names.iter().any(|name| name.contains("point")), "{snapshot:?}");
    let other = sandbox.snapshot(&SnapshotOptions { memory: false, name: None }).await.unwrap();
    let filter = SnapshotFilter { sandbox: Some(sandbox.id().into()), name: None };
    let listed = client.list_snapshots(&filter).await.unwrap();
    assert_eq!(listed, [other.clone(), snapshot.clone()], "newest first");
    let by_name = SnapshotFilter { name: Some("point".into()), sandbox: None };
    assert_eq!(client.list_snapshots(&by_name).await.unwrap().len(), 1);

    sandbox.files().write("note", "now").await.unwrap();
    let copy = Sandbox::create(&client, CreateOptions::new(&snapshot.id)).await.unwrap();
    assert_eq!(said(&copy, "cat note").await, "then");
    let stranger = copy.rollback(&snapshot.id).await;
    assert!(matches!(stranger, Err(Error::InvalidArgument(_))), "{stranger:?}");

    let forks = sandbox.fork(2, None).await.unwrap();
    assert_eq!(forks.len(), 2);
    for fork in forks {
        let fork = fork.unwrap();
        assert_eq!(said(&fork, "cat note").await, "now");
        fork.files().write("note", "fork").await.unwrap();
    }
    assert_eq!(said(&sandbox, "cat note").await, "now");
    assert!(matches!(sandbox.fork(0, None).await, Err(Error::InvalidArgument(_))));

    let (boot, sleeper) = (said(&sandbox, BOOT).await, "setsid -f sleep 1000 >&- 2>&-");
    said(&sandbox, sleeper).await;
    sandbox.rollback(&snapshot.id).await.unwrap();
    assert_eq!(said(&sandbox, "cat note; pgrep -x sleep || true").await, "then");
    assert_eq!(said(&sandbox, BOOT).await, boot);
    assert!(client.delete_snapshot(&snapshot.id).await.unwrap());
    assert!(client.delete_snapshot(&other.id).await.unwrap());
    assert!(!client.delete_snapshot(&snapshot.id).await.unwrap());
}

#[tokio::test]
async fn the_end_of_its_time_can_be_a_pause() {
    let server = Server::start();
    let options = CreateOptions {
        on_timeout: OnTimeout::Pause { memory: true, auto_resume: true, or_kill: false },
        ..CreateOptions::new("base")
    };
    let sandbox = Sandbox::create(&server.client(), options).await.unwrap();
    let follow = sandbox.commands().start("sleep 1000", RunOptions::default()).await.unwrap();
    let pid = follow.pid();
    sandbox.set_timeout(Duration::from_secs(1)).await.unwrap();
    assert!(follow.wait().await.is_err(), "its streams are cut");
    // This is traffic, too: it waits for the resume.
    assert!(sandbox.commands().list().await.unwrap().iter().any(|process| process.pid == pid));
    assert_eq!(sandbox.info().await.unwrap().state, SandboxState::Running);
}

#[test]
fn lifecycle_from_the_command_line() {
    let server = Server::start();
    let id = server.ids(&["sandbox", "create"]).remove(0);
    let write = |what: &str| {
        let run = server.cli(&["sandbox", "exec", &id, &format!("echo {what} > note")]);
        assert!(run.status.success(), "{run:?}");
    };
    let read = |id: &str| text(&server.cli(&["sandbox", "exec", id, "cat note"]).stdout);
    write("then");
    let snapshot =
        server.ids(&["sandbox", "snapshot", "create", &id, "--name", "point", "--disk-only"]).remove(0);
    let table = text(&server.cli(&["sandbox", "snapshot", "list", "--sandbox", &id]).stdout);
    assert!(table.starts_with("ID ") && table.contains(&snapshot), "{table}");
    write("now");

    assert_eq!(server.ids(&["sandbox", "pause", &id]), [id.as_str()]);
    let again = server.cli(&["sandbox", "pause", &id, "nosuch"]);
    assert!(!again.status.success() && text(&again.stderr).contains("paused already"), "{again:?}");
    assert!(text(&again.stderr).contains("error: nosuch"), "{again:?}");
    let paused = text(&server.cli(&["sandbox", "list", "--state", "paused"]).stdout);
    assert!(paused.contains(&id), "{paused}");
    let refused = server.cli(&["sandbox", "fork", &id]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("resume it first"), "{refused:?}");
    assert_eq!(server.ids(&["sandbox", "resume", &id, "--timeout", "600"]), [id.as_str()]);
    assert_eq!(read(&id), "now\n");

    let forks = server.ids(&["sandbox", "fork", &id, "--count", "2"]);
    assert_eq!(forks.iter().map(|fork| read(fork)).collect::<Vec<_>>(), ["now\n", "now\n"]);
    assert_eq!(server.ids(&["sandbox", "rollback", &id, &snapshot]), [id.as_str()]);
    assert_eq!(read(&id), "then\n");
    let from = server.ids(&["sandbox", "create", "point"]).remove(0);
    assert_eq!(read(&from), "then\n");
    assert_eq!(server.ids(&["sandbox", "snapshot", "delete", &snapshot]), [snapshot.as_str()]);
    assert!(!server.cli(&["sandbox", "snapshot", "delete", &snapshot]).status.success());
    let odd = server.cli(&["sandbox", "create", "--auto-resume"]);
    assert!(!odd.status.success() && text(&odd.stderr).contains("--on-timeout pause"), "{odd:?}");
}
