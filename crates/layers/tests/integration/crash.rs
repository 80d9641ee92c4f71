//! A server killed at any moment leaves no mount and no loop device; while sandboxes run, the next server joins them.
//! The "server" is this test's own program, started again.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::common::{Disk, name};
use layers::TreesBackend;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

const DIR: &str = "COFFERDAM_TEST_DIR";

/// The server process: opens the trees, creates one, prints its path, and waits to be killed.
#[test]
fn server() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let disk = Disk::at(dir.into());
    let trees = disk.open(TreesBackend::Loop);
    let tree = name("one");
    trees.discard(&tree).unwrap();
    trees.create(&tree, Some(64)).unwrap();
    fs::write(trees.path(&tree).join("file"), "written").unwrap();
    println!("\npath {}", trees.path(&tree).display());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0u8]);
}

fn start(disk: &Disk) -> (Child, PathBuf) {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::server", "--nocapture"])
        .env(DIR, &disk.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let path = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("path ").map(PathBuf::from));
    (server, path.expect("the server comes up"))
}

fn kill(mut server: Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn nothing_is_left_of_a_killed_server() {
    let disk = Disk::host();
    for _ in 0..3 {
        let (server, _) = start(&disk);
        assert!(disk.image_device().is_some());
        kill(server);
        disk.wait_until_detached();
    }
    let trees = disk.open(TreesBackend::Auto);
    assert!(trees.list().unwrap().len() <= 1);
}

#[test]
fn a_new_server_joins_what_still_runs() {
    let disk = Disk::host();
    let (server, path) = start(&disk);
    // As a sandbox: a clone of the mount, through which it continues to read and write.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, &path, flags).unwrap();
    let sandbox = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&clone)));
    kill(server);
    let before = disk.image_device().expect("the sandbox holds it");
    fs::write(sandbox.join("later"), "alone").unwrap();

    let trees = disk.open(TreesBackend::Auto);
    assert_eq!(disk.image_device(), Some(before));
    let tree = name("one");
    assert_eq!(fs::read_to_string(trees.path(&tree).join("file")).unwrap(), "written");
    assert_eq!(fs::read_to_string(trees.path(&tree).join("later")).unwrap(), "alone");
    fs::write(trees.path(&tree).join("file"), "by the new server").unwrap();
    assert_eq!(fs::read_to_string(sandbox.join("file")).unwrap(), "by the new server");
    assert!(trees.usage(&tree).unwrap().limit.is_some());
    // Discarded while a sandbox runs: its name is free, but the sandbox still has its files.
    trees.discard(&tree).unwrap();
    assert!(trees.list().unwrap().is_empty());
    assert!(fs::write(sandbox.join("file"), "x").is_ok() || File::open(sandbox.join("file")).is_err());
    drop(trees);
    assert!(disk.image_device().is_some());
    let _ = clone.as_fd();
    drop(clone);
    disk.wait_until_detached();
}
