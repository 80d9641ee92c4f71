//! A minimal client of envd that runs commands in a sandbox under test: HTTP/1.0, one request for each connection.
//! It exists so that the suite depends on little more than the traits. Panics on anything unexpected.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Sandbox;

/// The result of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// Exit code; −1 when a signal killed it.
    pub exit_code: i64,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A running command and the stream of its events.
#[derive(Debug)]
pub struct RunningCommand {
    stream: TcpStream,
    pending: String,
    stderr: String,
    exit_code: Option<i64>,
}

/// Makes a health check and waits for envd's answer.
pub async fn health(sandbox: &dyn Sandbox) {
    let mut stream = sandbox.dial(envd_api::PORT).await.expect("envd's port is open");
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await.expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("envd answers");
    assert!(answer.starts_with("HTTP/1.0 204") || answer.starts_with("HTTP/1.1 204"), "{answer}");
}

/// Runs a shell command as root and returns its result.
pub async fn run(sandbox: &dyn Sandbox, command: &str) -> CommandResult {
    let mut running = spawn(sandbox, "/bin/bash", &["-c", command]).await;
    while running.read_event().await {}
    let exit_code = running.exit_code.expect("an end event");
    CommandResult { exit_code, stdout: running.pending, stderr: running.stderr }
}

/// Starts a program as root.
pub async fn spawn(sandbox: &dyn Sandbox, program: &str, args: &[&str]) -> RunningCommand {
    let body = json!({ "process": { "cmd": program, "args": args, "cwd": "/" }, "stdin": false }).to_string();
    let length = u32::try_from(body.len()).expect("a short command");
    let head = format!(
        "POST /process.Process/Start HTTP/1.0\r\nContent-Type: application/connect+json\r\n\
         Connect-Protocol-Version: 1\r\nAuthorization: Basic cm9vdDo=\r\nContent-Length: {}\r\n\r\n",
        body.len() + 5
    );
    let mut request = head.into_bytes();
    request.push(0);
    request.extend(length.to_be_bytes());
    request.extend(body.into_bytes());
    let mut stream = sandbox.dial(envd_api::PORT).await.expect("envd's port is open");
    stream.write_all(&request).await.expect("the request is sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a response head"));
    }
    assert!(
        head.starts_with(b"HTTP/1.0 200") || head.starts_with(b"HTTP/1.1 200"),
        "{}",
        head.escape_ascii()
    );
    let mut running =
        RunningCommand { stream, pending: String::new(), stderr: String::new(), exit_code: None };
    running.read_event().await;
    running
}

impl RunningCommand {
    /// Returns the next line of its standard output.
    pub async fn next_line(&mut self) -> String {
        loop {
            if let Some((line, rest)) = self.pending.split_once('\n') {
                let line = line.to_owned();
                self.pending = rest.to_owned();
                return line;
            }
            assert!(self.read_event().await, "ended without a line: {self:?}");
        }
    }

    /// Reads one event; returns false after the last.
    async fn read_event(&mut self) -> bool {
        let flags = self.stream.read_u8().await.expect("a message");
        let length = self.stream.read_u32().await.expect("a length");
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).await.expect("a body");
        let message: Value = serde_json::from_slice(&body).expect("JSON");
        if flags & 2 != 0 {
            assert!(message.get("error").is_none(), "{message}");
            return false;
        }
        let event = &message["event"];
        let text = |value: &Value| {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        self.pending += &text(&event["data"]["stdout"]);
        self.stderr += &text(&event["data"]["stderr"]);
        if let Some(end) = event.get("end") {
            self.exit_code = Some(end["exitCode"].as_i64().unwrap_or(0));
        }
        true
    }
}
