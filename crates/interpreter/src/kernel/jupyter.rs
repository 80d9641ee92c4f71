//! A Jupyter kernel: requests on the shell channel, output on the iopub channel, both signed.
//! Messages are parsed as plain JSON: typed parsers reject messages of real kernels. Messages of others' requests are dropped.
//! A request has ended once its reply and the kernel's `idle` have both arrived.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::event::Bundle;
use crate::kernel::zmtp;
use crate::kernel::{KernelEvent, Outcome};

const DELIMITER: &[u8] = b"<IDS|MSG>";

/// After this the first request is repeated, in case the kernel responded before the subscription was effective.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Port numbers are the suffixes of socket names over ipc.
const SHELL: u16 = 1;
const IOPUB: u16 = 2;
const PORTS: &[(&str, u16)] =
    &[("shell_port", SHELL), ("iopub_port", IOPUB), ("stdin_port", 3), ("control_port", 4), ("hb_port", 5)];

/// The sockets of a kernel: abstract Unix sockets, which port forwarders do not find and snapshots need not restore as
/// files. Any process in the sandbox may connect, so requests are signed.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Directory of the connection file, which only this user may read; removed once the kernel is connected.
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

/// The current request, which output is matched with.
#[derive(Debug, Default)]
struct Current {
    id: String,
    replied: Option<Outcome>,
    reply_error: Option<KernelEvent>,
    idle: bool,
    failed: bool,
}

type Shared = Arc<Mutex<Current>>;

/// The connection to a running kernel.
#[derive(Debug)]
pub(crate) struct JupyterClient {
    shell: zmtp::Sender,
    key: String,
    session: String,
    current: Shared,
    /// The tasks that read the channels; they are aborted with the client.
    _readers: JoinSet<()>,
}

impl JupyterClient {
    /// Connects to a kernel that listens, and waits until its output arrives. Its events are sent to `events`.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        events: mpsc::Sender<KernelEvent>,
    ) -> Result<Self, Error> {
        // The sending side of iopub is not used, but closing it would end the connection.
        let (iopub_sender, iopub) =
            zmtp::connect(&endpoint.socket(IOPUB), "SUB").await.map_err(Error::Link)?;
        let (shell, replies) = zmtp::connect(&endpoint.socket(SHELL), "DEALER").await.map_err(Error::Link)?;
        let current = Shared::default();
        let (heard, mut hearing) = mpsc::channel(1);
        let mut readers = JoinSet::new();
        readers.spawn(read(replies, Arc::clone(&current), events.clone(), None));
        let for_output = Arc::clone(&current);
        readers.spawn(async move {
            let _keep = iopub_sender;
            read(iopub, for_output, events, Some(heard)).await;
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

    /// Begins a run. A silent run does not change the kernel's history and count.
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
        *self.current.lock() = Current { id, ..Current::default() };
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

/// Reads a channel until it closes. `heard` is notified of the first status.
async fn read(
    mut channel: zmtp::Receiver,
    current: Shared,
    events: mpsc::Sender<KernelEvent>,
    heard: Option<mpsc::Sender<()>>,
) {
    while let Ok(frames) = channel.receive().await {
        let Some(message) = parse(&frames) else { continue };
        if let Some(heard) = &heard
            && message.kind == "status"
        {
            let _ = heard.try_send(());
        }
        let understood = parse_events(&message, &mut current.lock());
        for out in understood {
            if events.send(out).await.is_err() {
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

/// The part of a display message that must not be parsed as a `Value`, which sorts keys.
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

fn parse_events(message: &Message, current: &mut Current) -> Vec<KernelEvent> {
    if message.parent != current.id {
        return Vec::new();
    }
    let content = &message.content;
    let mut out = Vec::new();
    match message.kind.as_str() {
        "execute_input" => out.extend(content["execution_count"].as_u64().map(KernelEvent::Count)),
        "stream" => {
            let text = text(&content["text"]);
            out.push(if content["name"] == "stderr" {
                KernelEvent::Stderr(text)
            } else {
                KernelEvent::Stdout(text)
            });
        }
        "display_data" | "execute_result" => {
            let main = message.kind == "execute_result";
            out.extend(
                serde_json::from_slice(&message.raw)
                    .map(|Display { data }| KernelEvent::Result { main, data }),
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
            // Sent at the end, and only if the output channel has no error, which is in order with other output.
            current.reply_error = (content["status"] == "error").then(|| error(content));
            // After `aborted` the kernel sends no `idle`.
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
        out.push(KernelEvent::Done(outcome));
    }
    out
}

fn error(content: &Value) -> KernelEvent {
    let traceback: String = content["traceback"].as_array().into_iter().flatten().map(text).collect();
    KernelEvent::Error { name: text(&content["ename"]), value: text(&content["evalue"]), traceback }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
