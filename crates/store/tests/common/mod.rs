//! A PostgreSQL of the test's own: fresh data directory, a socket in it instead of a port, gone with the value.
//! It refuses to run as root, so it runs as `nobody`. It is a child like any other: a test runner that ends the test ends it too.
//! Needs root and Debian's `postgresql` (`cargo xtask unit` installs it).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const NOBODY: u32 = 65534;

/// A running server.
pub(crate) struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root");
        // Another order of text than the byte-wise one, as databases of people have.
        let made = program("initdb")
            .args(["--username=cofferdam", "--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale"])
            .args(["--locale-provider=icu", "--icu-locale=en-US", "--pgdata"])
            .arg(path.join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("initdb can be run").success());
        let mut process = program("postgres")
            .arg("-D")
            .arg(path.join("data"))
            .arg("-k")
            .arg(path)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=50"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("postgres can be run");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        while let Some(Ok(line)) = lines.next() {
            let ready = line.contains("ready to accept connections");
            said.push(line);
            if ready {
                // It goes on talking, and must not stop because nobody listens.
                std::thread::spawn(move || lines.for_each(drop));
                return Self { process, dir };
            }
        }
        let _ = process.kill();
        let _ = process.wait();
        panic!("postgres did not start: {said:#?}");
    }

    /// The address of a database on it, which may not exist.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://cofferdam@localhost/{database}?host={}", self.dir.path().display())
    }

    /// Makes a database.
    pub(crate) fn create(&self, database: &str) -> String {
        let made = program("createdb")
            .args(["--username=cofferdam", "--host"])
            .arg(self.dir.path())
            .arg(database)
            .status();
        assert!(made.expect("createdb can be run").success());
        self.url(database)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // "Immediate shutdown"; nothing of it is kept.
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a process has a pid"), Signal::QUIT);
        let _ = self.process.wait();
    }
}

/// A program of the newest PostgreSQL that Debian's packages brought, to be run as nobody.
fn program(name: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: cargo xtask unit");
    let newest = versions
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bin").join(name).exists())
        .max_by_key(|path| number(path))
        .unwrap_or_else(|| PathBuf::from("/nonexistent"));
    let mut command = Command::new(newest.join("bin").join(name));
    command.uid(NOBODY).gid(NOBODY).current_dir("/").stdin(Stdio::null());
    command
}

fn number(path: &Path) -> u32 {
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
}
