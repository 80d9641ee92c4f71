//! QEMU's monitor protocol: JSON lines on a Unix socket, one answer a command.
//! The machine monitor is trusted as far as its guest is: what it says is read with limits and may end the connection, no more.
//! Protocol: QEMU's `docs/interop/qmp-spec.rst`; commands: its QMP reference manual.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::EngineError;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest line taken from QEMU, bytes.
const MAX_LINE: u64 = 1 << 20;

/// Time for a command that does nothing big.
const PATIENCE: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection to one machine's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<Writer>,
    waiting: Waiting,
    running: watch::Receiver<bool>,
    _reader: DropGuard,
}

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    next: u64,
}

impl Qmp {
    /// Takes up the conversation on a fresh connection.
    ///
    /// # Errors
    /// The other side is gone or does not speak the protocol.
    pub(crate) async fn open(stream: UnixStream) -> io::Result<Self> {
        let (reader, half) = stream.into_split();
        let waiting = Waiting::default();
        let (tell, running) = watch::channel(false);
        let stop = CancellationToken::new();
        let follow = read_all(reader, waiting.clone(), tell);
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
        let writer = tokio::sync::Mutex::new(Writer { half, next: 0 });
        let qmp = Self { writer, waiting, running, _reader: stop.drop_guard() };
        qmp.execute("qmp_capabilities", Value::Null).await.map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Ends the conversation: the other side takes up one at a time.
    pub(crate) async fn close(&self) {
        let _ = self.writer.lock().await.half.shutdown().await;
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// What QEMU says, or that it is gone or silent.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(command, arguments)).await;
        answer
            .unwrap_or_else(|_| Err("no answer in time".into()))
            .map_err(|error| format!("{command}: {error}"))
    }

    async fn exchange(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let (answer, receiver) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            writer.next += 1;
            let id = writer.next;
            let mut line = match arguments {
                Value::Null => json!({ "execute": command, "id": id }),
                arguments => json!({ "execute": command, "arguments": arguments, "id": id }),
            }
            .to_string();
            line.push('\n');
            lock(&self.waiting).insert(id, answer);
            writer.half.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        }
        receiver.await.unwrap_or_else(|_| Err("the machine monitor is gone".into()))
    }

    /// Stops the virtual processors; what they had written to disks is then in the files.
    pub(crate) async fn stop(&self) -> Result<(), EngineError> {
        self.execute("stop", Value::Null).await.map(drop).map_err(failure("stop the machine"))
    }

    /// Lets the virtual processors go on.
    pub(crate) async fn cont(&self) -> Result<(), EngineError> {
        self.execute("cont", Value::Null).await.map(drop).map_err(failure("let the machine go on"))
    }

    /// Writes the state of all devices, and no memory, to a file. The machine must be stopped.
    pub(crate) async fn save_devices(&self, path: &str) -> Result<(), EngineError> {
        // Not Xen's in spite of its name: it leaves out the memory, which is all the difference to a migration.
        let arguments = json!({ "filename": path, "live": true });
        let saved = self.execute("xen-save-devices-state", arguments).await;
        saved.map(drop).map_err(failure("save the devices"))
    }

    /// Begins to write the state of all devices and the memory to the socket `path`. The machine must be stopped.
    pub(crate) async fn migrate_to_socket(&self, path: &str) -> Result<(), EngineError> {
        let send = async {
            // The default is meant for networks that others use, too.
            self.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 })).await?;
            self.execute("migrate", json!({ "uri": format!("unix:{path}") })).await
        };
        send.await.map(drop).map_err(failure("send the memory"))
    }

    /// Whether all of it was written, once the socket is closed.
    pub(crate) async fn check_migration_completed(&self) -> Result<(), EngineError> {
        let sent = async {
            let answer = self.execute("query-migrate", Value::Null).await?;
            match answer["status"].as_str() {
                Some("completed") => Ok(()),
                _ => Err(answer["error-desc"].as_str().unwrap_or("it was cut short").to_owned()),
            }
        };
        sent.await.map_err(failure("send the memory"))
    }

    /// Loads what was saved by either way into a machine that waits for it, and returns once that runs.
    pub(crate) async fn load_state(&self, path: &str) -> Result<(), EngineError> {
        let loaded = async {
            self.execute("migrate-incoming", json!({ "uri": format!("file:{path}") })).await?;
            let mut running = self.running.clone();
            running
                .wait_for(|running| *running)
                .await
                .map(drop)
                .map_err(|_| "the machine monitor ended".into())
        };
        match tokio::time::timeout(PATIENCE, loaded).await {
            Ok(answer) => answer.map_err(|reason: String| EngineError::Restore(reason)),
            Err(_) => Err(EngineError::Timeout("loading the machine's devices")),
        }
    }

    /// The last of what the guest's console said.
    pub(crate) async fn console_tail(&self) -> String {
        let arguments = json!({ "device": "console", "size": 4096, "format": "utf8" });
        let said = self.execute("ringbuf-read", arguments).await.ok();
        said.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

fn failure(step: &'static str) -> impl FnOnce(String) -> EngineError {
    move |reason| EngineError::Kernel { step, source: io::Error::other(reason) }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, String>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to whom they are for until the connection ends; then nobody waits any more.
async fn read_all(half: OwnedReadHalf, waiting: Waiting, running: watch::Sender<bool>) {
    let mut reader = BufReader::new(half);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { break };
        match message["event"].as_str() {
            Some("RESUME") => drop(running.send_replace(true)),
            Some("STOP") => drop(running.send_replace(false)),
            _ => {}
        }
        let Some(answer) = message["id"].as_u64().and_then(|id| lock(&waiting).remove(&id)) else { continue };
        let result = match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(message["error"]["desc"].as_str().unwrap_or("refused").to_owned()),
        };
        let _ = answer.send(result);
    }
    lock(&waiting).clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that greets, answers and sends events in between.
    async fn monitor(stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            let asked: Value = serde_json::from_str(&line).unwrap();
            let answer = match asked["execute"].as_str().unwrap() {
                "stop" => json!({ "error": { "class": "GenericError", "desc": "no" }, "id": asked["id"] }),
                _ => json!({ "return": {}, "id": asked["id"] }),
            };
            writer.write_all(format!("{{\"event\":\"RESUME\"}}\n{answer}\n").as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_reach_their_commands_and_refusals_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let monitor = tokio::spawn(monitor(theirs));
        let qmp = Qmp::open(ours).await.unwrap();
        qmp.load_state("/x").await.unwrap();
        assert!(qmp.stop().await.unwrap_err().to_string().contains("stop: no"));
        monitor.abort();
        let _ = monitor.await;
        assert!(qmp.execute("cont", Value::Null).await.unwrap_err().contains("cont"));
    }
}
