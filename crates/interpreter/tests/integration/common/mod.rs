//! The real binary in a root filesystem with all languages, and a client that exposes every byte of the protocol.
//! Each server has an overlay, a PID namespace and an envd of its own, which always end with it.
//! `cargo xtask languages` and `unit` make the root filesystem; see `xtask/src/interpreter.rs`.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Time limit, longer than any start of a language on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Arguments: binary, root, directory of the server, address of envd, further options.
const START: &str = r#"
set -eu
mkdir -p "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,volatile" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
mkdir -p mnt
mount --bind "$2/shared" mnt
cp "$0" usr/local/bin/interpreter
envd=$3
shift 3
exec chroot . env -i PATH=/usr/local/bin:/usr/bin:/bin INTERPRETER_LOG=debug sh -c '
  exec interpreter serve --listen 127.0.0.1:0 --identity /mnt/id --envd "$@"' sh "$envd" "$@"
"#;

/// A running server.
pub(crate) struct Interpreter {
    pub(crate) address: SocketAddr,
    pub(crate) envd: Envd,
    dir: tempfile::TempDir,
    process: Child,
}

impl Interpreter {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(options: &[&str]) -> Self {
        let envd = Envd::start().await;
        let dir = tempfile::Builder::new().prefix("interpreter-").tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        fs::write(dir.path().join("shared/id"), "one").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", START]);
        command.arg(env!("CARGO_BIN_EXE_interpreter")).arg(languages()).arg(dir.path());
        command.arg(envd.address.to_string()).args(options);
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().expect("unshare is of util-linux");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{}", log()));
        Self { address: address.parse().unwrap(), envd, process, dir }
    }

    /// Path of the file that the server sees as `/mnt/<name>`.
    pub(crate) fn shared(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response =
            tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("headers in time");
        Response { response: response.unwrap(), pending: Vec::new(), connection }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(method, path, &[("content-type", "application/json")], body).await;
        (answer.status(), answer.text().await)
    }

    /// Creates a context and returns its id.
    pub(crate) async fn context(&self, body: Value) -> String {
        let (status, text) = self.call("POST", "/contexts", &body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn execute(&self, body: Value) -> Response {
        let answer =
            self.send("POST", "/execute", &[("content-type", "application/json")], body.to_string()).await;
        assert_eq!(answer.status(), 200, "{body}");
        answer
    }

    pub(crate) async fn run(&self, body: Value) -> FinishedRun {
        self.execute(body).await.finish().await
    }

    pub(crate) async fn code(&self, language: &str, code: &str) -> FinishedRun {
        self.run(json!({"language": language, "code": code})).await
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        // Killing the outer process kills PID 1 of the namespace, and with it all its processes.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("the interpreter's log:\n{}", &log[log.len().saturating_sub(4000)..]);
        }
    }
}

fn languages() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interpreter/root");
    let root = std::env::var_os("COFFERDAM_INTERPRETER_ROOT").map_or(default, PathBuf::from);
    assert!(
        root.join("usr/bin/R").exists(),
        "{} is missing: run `cargo xtask languages`, which makes it",
        root.display()
    );
    root
}

/// A response that is still arriving.
pub(crate) struct Response {
    response: http::Response<Incoming>,
    pending: Vec<u8>,
    connection: tokio::task::JoinHandle<()>,
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) async fn text(self) -> String {
        let body = self.response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// Returns the next line of a run.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                assert!(line.is_ascii(), "{}", String::from_utf8_lossy(&line));
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.response.body_mut().frame())
                .await
                .expect("a line in time");
            let Some(frame) = frame else {
                assert!(self.pending.is_empty(), "the last line has an end");
                return None;
            };
            self.pending.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
    }

    /// Returns the next line of a type.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("no {kind} came"));
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Closes the connection.
    pub(crate) async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }

    pub(crate) async fn finish(mut self) -> FinishedRun {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            if event["type"] != "keepalive" {
                events.push(event);
            }
        }
        let last = events.pop().expect("there is a last line");
        assert_eq!(last, json!({"type": "end_of_execution"}));
        FinishedRun { events }
    }
}

/// A run that has ended; its last line was checked and removed.
pub(crate) struct FinishedRun {
    pub(crate) events: Vec<Value>,
}

impl std::fmt::Debug for FinishedRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A chart's script has megabytes.
        f.debug_list()
            .entries(self.events.iter().map(|event| event.to_string().chars().take(500).collect::<String>()))
            .finish()
    }
}

impl FinishedRun {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["type"] == kind)
    }

    pub(crate) fn stdout(&self) -> String {
        self.of("stdout").map(|event| event["text"].as_str().unwrap()).collect()
    }

    pub(crate) fn stderr(&self) -> String {
        self.of("stderr").map(|event| event["text"].as_str().unwrap()).collect()
    }

    pub(crate) fn count(&self) -> u64 {
        assert_eq!(self.events[0]["type"], "number_of_executions", "{self:?}");
        self.events[0]["execution_count"].as_u64().unwrap()
    }

    pub(crate) fn results(&self) -> Vec<&Value> {
        self.of("result").collect()
    }

    pub(crate) fn result(&self) -> &Value {
        let results = self.results();
        assert_eq!(results.len(), 1, "{self:?}");
        results[0]
    }

    /// The text of the only result.
    pub(crate) fn text(&self) -> &str {
        self.result()["text"].as_str().unwrap()
    }

    /// Names of errors.
    pub(crate) fn errors(&self) -> Vec<&str> {
        self.of("error").map(|event| event["name"].as_str().unwrap()).collect()
    }

    pub(crate) fn error(&self) -> &Value {
        self.of("error").next().unwrap_or_else(|| panic!("{self:?}"))
    }

    /// Asserts that there are no lines but the count.
    pub(crate) fn assert_silent(&self) {
        assert_eq!(self.events.len(), 1, "{self:?}");
        self.count();
    }
}

/// A replacement of envd with a token and variables.
pub(crate) struct Envd {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<EnvdState>>,
}

#[derive(Default)]
struct EnvdState {
    broken: bool,
    token: Option<String>,
    env: BTreeMap<String, String>,
}

impl Envd {
    async fn start() -> Self {
        use axum::http::{HeaderMap, StatusCode};
        let state = Arc::<Mutex<EnvdState>>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        let envs = async move |headers: HeaderMap| {
            let state = shared.lock().unwrap();
            if state.broken {
                return Err(StatusCode::INTERNAL_SERVER_ERROR);
            }
            let given = headers.get("x-access-token").map(|token| token.to_str().unwrap());
            if state.token.is_some() && given != state.token.as_deref() {
                return Err(StatusCode::UNAUTHORIZED);
            }
            Ok(axum::Json(state.env.clone()))
        };
        let app = axum::Router::new().route("/envs", axum::routing::get(envs));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, state }
    }

    pub(crate) fn break_down(&self) {
        self.state.lock().unwrap().broken = true;
    }

    pub(crate) fn token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    pub(crate) fn env(&self, pairs: &[(&str, &str)]) {
        self.state.lock().unwrap().env =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }
}
