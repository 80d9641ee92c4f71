//! A Jupyter kernel: requests on the shell channel, output on the iopub channel, both signed.
//! Messages are read as plain JSON: typed readers drop what real kernels send. What belongs to no request of ours is dropped.
//! A request has ended when its reply and the kernel's `idle` are both here.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::event::Bundle;
use crate::kernel::zmtp;
use crate::kernel::{Outcome, Said};

const DELIMITER: &[u8] = b"<IDS|MSG>";

/// A kernel that answers before our subscription counts is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Over ipc, ports are ends of names.
const SHELL: u16 = 1;
const IOPUB: u16 = 2;
const PORTS: &[(&str, u16)] =
    &[("shell_port", SHELL), ("iopub_port", IOPUB), ("stdin_port", 3), ("control_port", 4), ("hb_port", 5)];

/// Where a kernel is to listen: abstract Unix sockets, which no port forwarder finds and no snapshot has to restore as
/// files. Anybody in the sandbox may connect, so requests are signed.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Holds the connection file, which only we may read; it goes once the kernel is connected.
    dir: tempfile::TempDir,
    name: String,
    key: String,
}

impl Endpoint {
    pub(crate) fn new() -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("kernel-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir()
            .map_err(Error::file(std::env::temp_dir()))?;
        let [name, key] = [(); 2].map(|()| uuid::Uuid::new_v4().to_string());
        let endpoint = Self { dir, name, key };
        let mut file = json!({
            "transport": "ipc", "ip": format!("@{}", endpoint.name), "key": endpoint.key,
            "signature_scheme": "hmac-sha256", "kernel_name": "",
        });
        for (name, port) in PORTS {
            file[*name] = (*port).into();
        }
        let path = endpoint.connection_file();
        std::fs::write(&path, file.to_string()).map_err(Error::file(path))?;
        Ok(endpoint)
    }

    pub(crate) fn connection_file(&self) -> PathBuf {
        self.dir.path().join("connection.json")
    }

    fn socket(&self, port: u16) -> String {
        format!("{}-{port}", self.name)
    }
}

/// The request that output belongs to.
#[derive(Debug, Default)]
struct Current {
    id: String,
    replied: Option<Outcome>,
    reply_error: Option<Said>,
    idle: bool,
    failed: bool,
}

type Shared = Arc<Mutex<Current>>;

/// Our side of a running kernel.
#[derive(Debug)]
pub(crate) struct Client {
    shell: zmtp::Sender,
    key: String,
    session: String,
    current: Shared,
    /// Readers of the channels; they end with the client.
    _readers: JoinSet<()>,
}

impl Client {
    /// Connects to a kernel that listens, and waits until its output reaches us. What it says goes to `said`.
    pub(crate) async fn connect(endpoint: &Endpoint, said: mpsc::Sender<Said>) -> Result<Self, Error> {
        // Of iopub only the receiving side is used, but a closed sending side would end the connection.
        let (iopub_sender, iopub) =
            zmtp::connect(&endpoint.socket(IOPUB), "SUB").await.map_err(Error::Link)?;
        let (shell, replies) = zmtp::connect(&endpoint.socket(SHELL), "DEALER").await.map_err(Error::Link)?;
        let current = Shared::default();
        let (heard, mut hearing) = mpsc::channel(1);
        let mut readers = JoinSet::new();
        readers.spawn(read(replies, Arc::clone(&current), said.clone(), None));
        let for_output = Arc::clone(&current);
        readers.spawn(async move {
            let _keep = iopub_sender;
            read(iopub, for_output, said, Some(heard)).await;
        });
        let key = endpoint.key.clone();
        let session = uuid::Uuid::new_v4().to_string();
        let mut client = Self { shell, key, session, current, _readers: readers };
        loop {
            client.request("kernel_info_request", &json!({})).await?;
            match tokio::time::timeout(ASK_AGAIN, hearing.recv()).await {
                Ok(Some(())) => return Ok(client),
                Ok(None) => return Err(Error::Link(io::ErrorKind::BrokenPipe.into())),
                Err(_) => {}
            }
        }
    }

    /// Begins a run; a silent one leaves no trace in the kernel's history and count.
    pub(crate) async fn execute(&mut self, code: &str, silent: bool) -> Result<(), Error> {
        let content = json!({
            "code": code, "silent": silent, "store_history": !silent, "user_expressions": {},
            "allow_stdin": false, "stop_on_error": !silent,
        });
        self.request("execute_request", &content).await
    }

    async fn request(&mut self, kind: &str, content: &Value) -> Result<(), Error> {
        let id = uuid::Uuid::new_v4().to_string();
        let header = json!({
            "msg_id": id, "session": self.session, "username": "e2b", "date": "2020-01-01T00:00:00Z",
            "msg_type": kind, "version": "5.3",
        });
        *lock(&self.current) = Current { id, ..Current::default() };
        let parts = [header.to_string(), "{}".to_owned(), "{}".to_owned(), content.to_string()];
        let mut frames = vec![DELIMITER.to_vec(), signature(&self.key, &parts).into_bytes()];
        frames.extend(parts.map(String::into_bytes));
        self.shell.send(&frames).await.map_err(Error::Link)
    }
}

fn signature(key: &str, parts: &[String]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part.as_bytes());
    }
    let bytes = mac.finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock(current: &Shared) -> std::sync::MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a channel until it closes. `heard` is told of the first status.
async fn read(
    mut channel: zmtp::Receiver,
    current: Shared,
    said: mpsc::Sender<Said>,
    heard: Option<mpsc::Sender<()>>,
) {
    while let Ok(frames) = channel.receive().await {
        let Some(message) = parse(&frames) else { continue };
        if let Some(heard) = &heard
            && message.kind == "status"
        {
            let _ = heard.try_send(());
        }
        let understood = understand(&message, &mut lock(&current));
        for out in understood {
            if said.send(out).await.is_err() {
                return;
            }
        }
    }
}

#[derive(Debug)]
struct Message {
    kind: String,
    parent: String,
    content: Value,
    raw: Vec<u8>,
}

/// The part of a display that must not be read as a `Value`, which sorts keys.
#[derive(Debug, serde::Deserialize)]
struct Display {
    data: Bundle,
}

fn parse(frames: &[Vec<u8>]) -> Option<Message> {
    let at = frames.iter().position(|frame| frame == DELIMITER)?;
    let [_signature, header, parent, _metadata, content, ..] = frames.get(at + 1..)? else { return None };
    let header: Value = serde_json::from_slice(header).ok()?;
    let parent: Value = serde_json::from_slice(parent).ok()?;
    Some(Message {
        kind: header["msg_type"].as_str()?.to_owned(),
        parent: parent["msg_id"].as_str().unwrap_or_default().to_owned(),
        content: serde_json::from_slice(content).ok()?,
        raw: content.clone(),
    })
}

fn understand(message: &Message, current: &mut Current) -> Vec<Said> {
    if message.parent != current.id {
        return Vec::new();
    }
    let content = &message.content;
    let mut out = Vec::new();
    match message.kind.as_str() {
        "execute_input" => out.extend(content["execution_count"].as_u64().map(Said::Count)),
        "stream" => {
            let text = text(&content["text"]);
            out.push(if content["name"] == "stderr" { Said::Stderr(text) } else { Said::Stdout(text) });
        }
        "display_data" | "execute_result" => {
            let main = message.kind == "execute_result";
            out.extend(
                serde_json::from_slice(&message.raw).map(|Display { data }| Said::Result { main, data }),
            );
        }
        "error" if !current.failed => {
            current.failed = true;
            out.push(error(content));
        }
        "execute_reply" => {
            let outcome = match content["status"].as_str() {
                Some("abort" | "aborted") => Outcome::Aborted,
                _ => Outcome::Done,
            };
            // Told at the end, and only if the output channel has no error: that comes in order.
            current.reply_error = (content["status"] == "error").then(|| error(content));
            // Whoever aborts sends no `idle`.
            current.idle |= outcome == Outcome::Aborted;
            current.replied = Some(outcome);
        }
        "status" => current.idle |= content["execution_state"] == "idle",
        _ => return out,
    }
    if current.idle
        && let Some(outcome) = current.replied.take()
    {
        current.id.clear();
        out.extend(current.reply_error.take().filter(|_| !current.failed));
        out.push(Said::Done(outcome));
    }
    out
}

fn error(content: &Value) -> Said {
    let traceback: String = content["traceback"].as_array().into_iter().flatten().map(text).collect();
    Said::Error { name: text(&content["ename"]), value: text(&content["evalue"]), traceback }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
