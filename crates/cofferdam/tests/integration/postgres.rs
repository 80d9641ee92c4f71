//! The server with its records in PostgreSQL: it survives a crash as ever, and never meets another one's records.
//! Needs root, Debian's `postgresql`, and what the other tests need.

#[path = "../../../store/tests/common/mod.rs"]
mod postgresql;

use std::process::{Command, Stdio};

use crate::common::{BINARY, Server, text, variable};
use cofferdam_client::RunOptions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_in_the_database() {
    let database = postgresql::Server::start();
    let url = database.create("cofferdam");
    let options = ["--database", &url];
    let mut server = Server::start_with(&options);
    assert!(!server.data.path().join("cofferdam.db").exists());
    let sandbox = server.sandbox().await;
    let id = sandbox.id().to_owned();

    server.crash(&options);
    let listed = server.cli(&["sandbox", "list"]);
    assert!(text(&listed.stdout).contains(&id), "{listed:?}");
    let again =
        cofferdam_client::Sandbox::connect(&server.client(), &id, None).await.expect("it was adopted");
    let output = again.commands().run("echo still", RunOptions::default()).await.expect("it answers");
    assert_eq!(output.stdout_text(), "still\n");

    // Neither the directory without its database, nor the database with another directory, nor a second server.
    let refused = serve(server.data.path(), &[]);
    assert!(refused.contains("another server uses"), "{refused}");
    let other = tempfile::tempdir().expect("a directory");
    let refused = serve(other.path(), &options);
    assert!(refused.contains("another server uses this database"), "{refused}");
    assert!(!other.path().join("database-id").exists());
    crate::common::assert_nothing_left(other.path());
}

#[test]
fn a_dir_and_a_database_stay_together() {
    let database = postgresql::Server::start();
    let (first, second) = (database.create("first"), database.create("second"));
    let with = |url: &str| ["--database".to_owned(), url.to_owned()];
    let server = Server::start_with(&with(&first).each_ref().map(String::as_str));
    let dir = server.data.path().to_owned();
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(dir.join("database-id"), copy.path().join("database-id")).expect("it is there");
    drop(server);
    let refused = serve(copy.path(), &[]);
    assert!(refused.contains("start with --database"), "{refused}");
    let refused = serve(copy.path(), &["--database", &second]);
    assert!(refused.contains("belongs to another data directory"), "{refused}");
    let other = tempfile::tempdir().expect("a directory");
    let refused = serve(other.path(), &["--database", &first]);
    assert!(refused.contains("belongs to another data directory"), "{refused}");
    std::fs::write(other.path().join("cofferdam.db"), "").expect("a file");
    let refused = serve(other.path(), &["--database", &first]);
    assert!(refused.contains("move this file away"), "{refused}");
    [copy, other].iter().for_each(|dir| crate::common::assert_nothing_left(dir.path()));
}

/// What a server says that must not start.
fn serve(dir: &std::path::Path, options: &[&str]) -> String {
    let output = Command::new(BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--slots", "0", "--data-dir"])
        .arg(dir)
        .arg("--layers-dir")
        .arg(variable("COFFERDAM_LAYERS"))
        .arg("--envd")
        .arg(variable("COFFERDAM_ENVD"))
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(!output.status.success(), "it started");
    text(&output.stderr)
}
