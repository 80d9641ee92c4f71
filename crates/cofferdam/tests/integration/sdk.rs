//! The Rust SDK against a real server: every verb once, and the errors a program has to tell apart.
//! Sandboxes are real; see `common` for what is needed.
//! Waits end with an event or the test runner's limit, never after a while.

use std::time::Duration;

use crate::common::Server;
use bytes::Bytes;
use cofferdam_client::{
    Client, ClientConfig, CreateOptions, EntryKind, Error, ListOptions, Operation, ProcessEvent, PtyOptions,
    PtySize, RunOptions, Sandbox, SandboxState, SignedUrlOptions,
};
use futures::{StreamExt, stream};

#[tokio::test]
async fn a_create_with_a_key_happens_once() {
    let server = Server::start();
    let client = server.client();
    let keyed = |key: &str, who: &str| {
        let mut options = CreateOptions::new("base");
        options.idempotency_key = Some(key.to_owned());
        options.metadata.insert("who".to_owned(), who.to_owned());
        options
    };
    let first = Sandbox::create(&client, keyed("once", "a")).await.unwrap();
    let again = Sandbox::create(&client, keyed("once", "a")).await.unwrap();
    assert_eq!(first.id(), again.id());
    assert!(again.is_running().await.unwrap());
    let other = Sandbox::create(&client, keyed("twice", "a")).await.unwrap();
    assert_ne!(first.id(), other.id());
    let mismatch = Sandbox::create(&client, keyed("once", "b")).await.unwrap_err();
    assert!(matches!(&mismatch, Error::Server { code, .. } if code == "422"), "{mismatch}");
}

#[tokio::test]
async fn sandboxes_live_and_end() {
    let server = Server::start();
    let client = server.client();
    client.health().await.unwrap();
    assert!(!client.engine().await.unwrap().summary.is_empty());

    let mut options = CreateOptions::new("base");
    options.metadata.insert("job".into(), "a&b=c d".into());
    options.envs.insert("GREETING".into(), "hello".into());
    let sandbox = Sandbox::create(&client, options.clone()).await.unwrap();
    assert!(sandbox.is_running().await.unwrap());
    let said = sandbox.commands().run("echo $GREETING", RunOptions::default()).await.unwrap();
    assert_eq!(said.stdout_text(), "hello\n");

    let info = sandbox.info().await.unwrap();
    assert_eq!((info.id.as_str(), info.state), (sandbox.id(), SandboxState::Running));
    sandbox.set_timeout(Duration::from_secs(1000)).await.unwrap();
    assert!(sandbox.info().await.unwrap().end_at - info.end_at > Duration::from_secs(600));

    let same = ListOptions { metadata: options.metadata.clone(), ..ListOptions::default() };
    let found = Sandbox::list(&client, &same).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].metadata, options.metadata);
    let other = ListOptions { metadata: [("job".into(), "a".into())].into(), ..ListOptions::default() };
    assert!(Sandbox::list(&client, &other).await.unwrap().is_empty());

    let joined = Sandbox::connect(&client, sandbox.id(), None).await.unwrap();
    assert!(joined.kill().await.unwrap());
    assert!(!sandbox.kill().await.unwrap());
    assert!(!sandbox.is_running().await.unwrap());
    assert!(matches!(sandbox.info().await, Err(Error::NotFound(_))));
    assert!(matches!(Sandbox::connect(&client, sandbox.id(), None).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn commands_stream_and_end() {
    let server = Server::start();
    let sandbox = server.sandbox().await;
    let commands = sandbox.commands();

    let output = commands.run("echo out; echo err >&2; exit 3", RunOptions::default()).await.unwrap();
    assert_eq!((output.stdout_text(), output.stderr_text()), ("out\n".into(), "err\n".into()));
    assert_eq!(output.exit.code, 3);
    assert!(matches!(output.check(), Err(Error::CommandFailed(_))));

    let as_root = RunOptions {
        user: Some("root".into()),
        cwd: Some("/etc".into()),
        envs: [("A".into(), "1".into())].into(),
        ..RunOptions::default()
    };
    let output = commands.run("id -un; pwd; echo $A", as_root).await.unwrap();
    assert_eq!(output.stdout_text(), "root\n/etc\n1\n");

    let feed = RunOptions { stdin: true, timeout: None, tag: Some("feed".into()), ..RunOptions::default() };
    let mut running = commands.start("head -n 1; exec cat", feed).await.unwrap();
    running.send_stdin("first\n").await.unwrap();
    assert_eq!(running.next().await.unwrap(), Some(ProcessEvent::Stdout(Bytes::from("first\n"))));
    let listed = commands.list().await.unwrap();
    assert!(listed.iter().any(|p| p.pid == running.pid() && p.tag.as_deref() == Some("feed")), "{listed:?}");
    let joined = commands.connect(running.pid()).await.unwrap();
    commands.send_stdin(running.pid(), "second\n").await.unwrap();
    running.process().close_stdin().await.unwrap();
    for output in [running.wait().await.unwrap(), joined.wait().await.unwrap()] {
        assert_eq!((output.stdout_text().as_str(), output.exit.code), ("second\n", 0));
    }

    let sleeping = commands.start("exec sleep 1000", RunOptions::default()).await.unwrap();
    let pid = sleeping.pid();
    assert!(sleeping.kill().await.unwrap());
    let exit = sleeping.wait().await.unwrap().exit;
    assert_eq!((exit.code, exit.to_string().as_str()), (-1, "signal: killed"));
    assert!(!commands.kill(pid).await.unwrap());
    assert!(matches!(commands.connect(999_999).await, Err(Error::NotFound(_))));

    let short = RunOptions { timeout: Some(Duration::from_millis(300)), ..RunOptions::default() };
    assert!(matches!(commands.run("sleep 1000", short).await, Err(Error::Timeout(_))));
    let nowhere = RunOptions { cwd: Some("/nowhere".into()), ..RunOptions::default() };
    assert!(matches!(commands.run("true", nowhere).await, Err(Error::InvalidArgument(_))));
    let nobody = RunOptions { user: Some("nobody-at-all".into()), ..RunOptions::default() };
    assert!(matches!(commands.run("true", nobody).await, Err(Error::Unauthorized(_))));
}

#[tokio::test]
async fn a_killed_sandbox_ends_its_streams() {
    let server = Server::start();
    let sandbox = server.sandbox().await;
    let endless = RunOptions { timeout: None, ..RunOptions::default() };
    let running = sandbox.commands().start("sleep 1000", endless).await.unwrap();
    let (killed, ended) = tokio::join!(sandbox.kill(), running.wait());
    assert!(killed.unwrap());
    assert!(matches!(ended, Err(Error::SandboxEnded)), "{ended:?}");
    assert!(matches!(sandbox.files().read("/etc/hostname").await, Err(Error::SandboxEnded)));
}

#[tokio::test]
async fn terminals_have_a_size() {
    let server = Server::start();
    let sandbox = server.sandbox().await;
    let size = PtySize { cols: 91, rows: 17 };
    let shell = sandbox.pty().create(size, PtyOptions::default()).await.unwrap();
    let pid = shell.pid();
    sandbox.pty().send_input(pid, "stty size; exec bash -c 'read; stty size; exit 7'\n").await.unwrap();
    sandbox.pty().resize(pid, PtySize { cols: 120, rows: 40 }).await.unwrap();
    sandbox.pty().send_input(pid, "\n").await.unwrap();
    let output = shell.wait().await.unwrap();
    let shown = output.stdout_text();
    assert!(shown.contains("40 120"), "{shown}");
    assert_eq!(output.exit.code, 7);
    assert!(!sandbox.pty().kill(pid).await.unwrap());
}

#[tokio::test]
async fn files_come_and_go() {
    let server = Server::start();
    let sandbox = server.sandbox().await;
    let files = sandbox.files();

    let big: Vec<u8> = (0..20_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    files.write("dir/a file+%.bin", big.clone()).await.unwrap();
    assert_eq!(files.read("/home/user/dir/a file+%.bin").await.unwrap(), big);
    files.write("empty", "").await.unwrap();
    assert_eq!(files.read_text("empty").await.unwrap(), "");

    let pieces = stream::iter((0..10).map(|n| Ok::<_, std::io::Error>(Bytes::from(format!("{n}\n")))));
    files.write_stream("dir/pieces", pieces).await.unwrap();
    let mut read = files.read_stream("dir/pieces").await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = read.next().await {
        text.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(text, b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");

    assert!(files.make_dir("new/deep").await.unwrap());
    assert!(!files.make_dir("new/deep").await.unwrap());
    let moved = files.rename("dir/pieces", "new/pieces").await.unwrap();
    assert_eq!((moved.path.as_str(), moved.kind), ("/home/user/new/pieces", EntryKind::File));
    assert_eq!((moved.size, moved.owner.as_str()), (20, "user"));
    assert!(moved.modified.is_some());
    let names = |entries: Vec<cofferdam_client::EntryInfo>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names(files.list("new", 1).await.unwrap()), ["deep", "pieces"]);
    files.as_user("root").write("by-root", "x").await.unwrap();
    assert_eq!(files.as_user("root").info("/root/by-root").await.unwrap().owner, "root");
    assert!(files.info("/root/by-root").await.is_err(), "its user may not look into the home of root");

    assert!(files.exists("new/pieces").await.unwrap());
    files.remove("new").await.unwrap();
    assert!(!files.exists("new").await.unwrap());
    assert!(matches!(files.read("nothing").await, Err(Error::NotFound(_))));
    assert!(matches!(files.read("/etc").await, Err(Error::InvalidArgument(_))));
    assert!(matches!(files.list("nothing", 1).await, Err(Error::NotFound(_))));

    let url = sandbox.signed_url("/etc/hostname", Operation::Read, &SignedUrlOptions::default()).unwrap();
    assert!(url.starts_with(&server.url) && url.contains("signature=v1_"), "{url}");
}

#[tokio::test]
async fn keys_are_the_operators() {
    let server = Server::start();
    let operator = server.operator();
    assert!(operator.list_teams().await.unwrap().iter().any(|team| team.is_default));
    let key = operator.create_key("second").await.unwrap();
    assert!(!format!("{key:?}").contains(&key.key));
    assert!(key.details.masked().len() < key.key.len());
    let theirs = Client::new(ClientConfig::at(&server.url).with_api_key(&key.key)).unwrap();
    theirs.engine().await.unwrap();
    let listed = operator.list_keys().await.unwrap();
    assert!(listed.iter().any(|listed| listed.id == key.details.id && listed.name == "second"));
    operator.delete_key(&key.details.id).await.unwrap();
    assert!(matches!(theirs.engine().await, Err(Error::Unauthorized(_))));
    assert!(matches!(operator.delete_key(&key.details.id).await, Err(Error::NotFound(_))));
    assert!(matches!(server.client().list_keys().await, Err(Error::Config(_))));
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let server = Server::start();
    let unknown = Sandbox::create(&server.client(), CreateOptions::new("no-such-template")).await;
    assert!(matches!(unknown, Err(Error::NotFound(_))), "{unknown:?}");
    let keyless = Client::new(ClientConfig::at(&server.url)).unwrap();
    let error = Sandbox::list(&keyless, &ListOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("E2B_API_KEY"), "{error}");
    let nowhere = Client::new(ClientConfig::at("http://127.0.0.1:9").with_api_key("e2b_00")).unwrap();
    let error = nowhere.health().await.unwrap_err();
    assert_eq!(error.to_string(), "http://127.0.0.1:9 cannot be reached: Connection refused (os error 111)");
}
