//! A real envd on its own port, and a small HTTP client that exposes the wire format.
//! Every test has its own envd and its own directory, which are removed afterwards.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod corpus;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A running envd.
pub struct Envd {
    child: Child,
    pub address: String,
    pub dir: TempDir,
    pub token: Option<String>,
}

impl Drop for Envd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }
}

impl Envd {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_envd"))
            .args(["--port", "0", "--system-root"])
            .arg(dir.path().join("system"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("envd starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("envd says where it listens");
        let address = line.trim().replace("0.0.0.0", "127.0.0.1");
        Self { child, address, dir, token: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).expect("envd listens");
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: envd\r\nContent-Length: {}\r\n", body.len());
        if let Some(token) = &self.token {
            head.push_str(&format!("X-Access-Token: {token}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
        // The response may arrive before the whole body is sent.
        let _ = stream.write_all(body);
        BufReader::new(stream)
    }

    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut reader = self.send(method, target, headers, body);
        let (status, headers) = head(&mut reader);
        let mut body = Body::new(reader, &headers);
        let mut all = Vec::new();
        body.read_to_end(&mut all).expect("a whole body");
        Response { status, headers, body: all }
    }

    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// Makes a unary call.
    pub fn call(&self, method: &str, body: &Value) -> Response {
        let headers = [("Content-Type", "application/json"), ("Connect-Protocol-Version", "1")];
        self.request("POST", &format!("/{method}"), &headers, body.to_string().as_bytes())
    }

    /// Makes a streaming call.
    pub fn stream(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        self.stream_of(method, headers, std::slice::from_ref(body))
    }

    /// Makes a streaming call with any number of messages.
    pub fn stream_of(&self, method: &str, headers: &[(&str, &str)], messages: &[Value]) -> Events {
        let mut all = vec![("Content-Type", "application/connect+json"), ("Connect-Protocol-Version", "1")];
        all.extend(headers);
        let mut body = Vec::new();
        for message in messages {
            let message = message.to_string();
            body.push(0);
            body.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
            body.extend(message.as_bytes());
        }
        let mut reader = self.send("POST", &format!("/{method}"), &all, &body);
        let (status, headers) = head(&mut reader);
        assert_eq!(status, 200);
        let body = Body::new(reader, &headers);
        Events { body, end: None }
    }

    /// Starts a shell command and returns its events.
    pub fn shell(&self, script: &str) -> Events {
        self.start_with(&[], &json!({"process": {"cmd": "/bin/sh", "args": ["-c", script]}, "stdin": false}))
    }

    pub fn start_with(&self, headers: &[(&str, &str)], request: &Value) -> Events {
        self.stream("process.Process/Start", headers, request)
    }
}

fn head(reader: &mut BufReader<TcpStream>) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a status line");
    let status =
        line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return (status, headers),
        }
    }
}

/// Reads a body, chunked or of known length.
struct Body {
    reader: BufReader<TcpStream>,
    /// Number of bytes left of the body, or of this chunk.
    left: usize,
    chunked: bool,
    ended: bool,
}

impl Body {
    fn new(reader: BufReader<TcpStream>, headers: &[(String, String)]) -> Self {
        let of = |wanted: &str| {
            headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(wanted)).map(|(_, v)| v.as_str())
        };
        let chunked = of("transfer-encoding") == Some("chunked");
        let left = of("content-length").map_or(0, |text| text.parse().expect("a length"));
        Self { reader, left, chunked, ended: !chunked && left == 0 }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 && self.chunked {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                line.clear();
                self.reader.read_line(&mut line)?;
            }
            let size = usize::from_str_radix(line.trim(), 16);
            self.left = size.map_err(|_| std::io::Error::other(format!("no chunk size: {line:?}")))?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        self.ended = self.left == 0 && !self.chunked;
        Ok(read)
    }
}

/// The messages of a stream.
pub struct Events {
    body: Body,
    /// The last envelope, once it has been read.
    pub end: Option<Value>,
}

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        if self.end.is_some() {
            return None;
        }
        let mut head = [0; 5];
        self.body.read_exact(&mut head).expect("a stream ends with its end envelope");
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut message = vec![0; len];
        self.body.read_exact(&mut message).expect("a whole message");
        let message = serde_json::from_slice(&message).expect("JSON");
        if head[0] == 2 {
            self.end = Some(message);
            return None;
        }
        assert_eq!(head[0], 0);
        Some(message)
    }
}

impl Events {
    /// Returns the process id, which the first event has.
    pub fn pid(&mut self) -> u64 {
        let event = self.next().expect("a first event");
        event["event"]["start"]["pid"].as_u64().unwrap_or_else(|| panic!("no start event: {event}"))
    }

    /// Reads until a text has been printed.
    pub fn until(&mut self, text: &str) -> String {
        let mut output = String::new();
        while !output.contains(text) {
            let event = self.next().unwrap_or_else(|| panic!("stream ended before {text:?}: {output:?}"));
            let data = &event["event"]["data"];
            for kind in ["stdout", "stderr", "pty"] {
                output.push_str(&String::from_utf8_lossy(&decode(&data[kind])));
            }
        }
        output
    }

    /// Reads to the end.
    pub fn finish(&mut self) -> Finished {
        let mut finished = Finished::default();
        for event in self.by_ref() {
            let event = &event["event"];
            assert!(finished.end.is_null(), "something came after the end: {event}");
            finished.stdout.extend(decode(&event["data"]["stdout"]));
            finished.stderr.extend(decode(&event["data"]["stderr"]));
            finished.pty.extend(decode(&event["data"]["pty"]));
            finished.keepalives += usize::from(event.get("keepalive").is_some());
            if let Some(end) = event.get("end") {
                finished.end = end.clone();
            }
        }
        finished
    }

    /// Returns the error that ended the stream.
    pub fn error(&mut self) -> (String, String) {
        while self.next().is_some() {}
        let error = &self.end.as_ref().expect("an end")["error"];
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (text("code"), text("message"))
    }
}

/// The whole output of a process, and its end.
#[derive(Debug, Default)]
pub struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub keepalives: usize,
    pub end: Value,
}

impl Finished {
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }
}

fn decode(value: &Value) -> Vec<u8> {
    value.as_str().map(|text| STANDARD.decode(text).expect("base64")).unwrap_or_default()
}

pub fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Makes a selector by process id.
pub fn by_pid(pid: u64) -> Value {
    json!({"pid": pid})
}
