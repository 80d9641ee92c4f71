//! A real server for a test: its own data directory, a free port, and nothing left when the test is over.
//! Needs root, `COFFERDAM_ENVD` and `COFFERDAM_LAYERS`: `cargo xtask unit` sets both.
//! It ends by id what it started, its sandboxes first.
#![allow(dead_code, reason = "every test program uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cofferdam_client::{Client, ClientConfig, CreateOptions, Sandbox};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_cofferdam");

/// A server under test.
pub(crate) struct Server {
    pub(crate) data: TempDir,
    pub(crate) url: String,
    pub(crate) key: String,
    process: Child,
}

pub(crate) fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{name} is not set: run these tests with `cargo xtask unit`"))
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further options of `serve`.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let (process, url) = serve(data.path(), options);
        let mut server = Self { data, url, key: String::new(), process };
        let made = server.cli(&["key", "create", "--name", "test"]);
        server.key = text(&made.stdout).trim().to_owned();
        assert!(server.key.starts_with("e2b_"), "{made:?}");
        server
    }

    /// Kills its process and starts another on the same directory.
    pub(crate) fn crash(&mut self, options: &[&str]) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it ends");
        (self.process, self.url) = serve(self.data.path(), options);
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(ClientConfig::at(&self.url).with_api_key(&self.key)).expect("a client")
    }

    pub(crate) fn operator(&self) -> Client {
        let token = fs::read_to_string(self.data.path().join("admin-token")).expect("a token");
        Client::new(ClientConfig::at(&self.url).with_admin_token(token)).expect("a client")
    }

    pub(crate) async fn sandbox(&self) -> Sandbox {
        Sandbox::create(&self.client(), CreateOptions::new("base")).await.expect("a sandbox")
    }

    /// Our own command line against this server, ready to be run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .env("COFFERDAM_DATA_DIR", self.data.path())
            .env("E2B_API_KEY", &self.key)
            .env_remove("E2B_API_URL")
            .env_remove("E2B_SANDBOX_URL")
            .env_remove("E2B_DOMAIN")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }
}

/// Starts a server and returns its address, when it is ready.
fn serve(data: &Path, options: &[&str]) -> (Child, String) {
    let log = fs::File::create(data.join("server.log")).expect("a log");
    let mut process = Command::new(BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--slots", "2", "--data-dir"])
        .arg(data)
        .arg("--layers-dir")
        .arg(variable("COFFERDAM_LAYERS"))
        .arg("--envd")
        .arg(variable("COFFERDAM_ENVD"))
        .args(options)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
    let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| {
        panic!("not ready: {}", fs::read_to_string(data.join("server.log")).unwrap_or_default())
    });
    (process, url.to_owned())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Ends a server by its process id and waits for its end.
pub(crate) fn terminate(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().expect("a process id")).expect("not 0");
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    kill_process(pid, Signal::TERM).expect("it is there");
    if let Ok(handle) = handle {
        let mut waits = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut waits, None).expect("it can be waited for");
    }
}

/// No control group and no mount of this data directory's server is left.
pub(crate) fn assert_nothing_left(data: &Path) {
    let name = engine_host::instance_name(data).expect("a name");
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join(&name);
        assert!(!group.exists(), "{} is left", group.display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it is readable");
    assert!(!mounts.contains(&name), "a mount is left");
    // The server's directory there is for its next start, which will not come.
    let _ = fs::remove_dir_all(Path::new("/run/cofferdam").join(name));
}

impl Drop for Server {
    fn drop(&mut self) {
        let killed = self.cli(&["sandbox", "kill", "--all"]);
        terminate(self.process.id());
        let _ = self.process.wait();
        if !std::thread::panicking() {
            assert!(killed.status.success(), "{killed:?}");
            assert_nothing_left(self.data.path());
        }
    }
}
