//! QEMU's monitor protocol (QMP): JSON lines on a Unix socket, one answer to each command.
//!
//! QEMU is trusted no more than its guest: what it sends is read with limits and can do no more
//! than end the connection. Protocol: QEMU's `docs/interop/qmp-spec.rst`; commands: its QMP
//! reference manual.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Maximum length of a line from QEMU, bytes.
const MAX_LINE: u64 = 1 << 20;

/// Time limit for a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

type PendingAnswers = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection to the monitor of one VM.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<Writer>,
    pending: PendingAnswers,
    running: watch::Receiver<bool>,
    _reader: DropGuard,
}

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    next: u64,
}

impl Qmp {
    /// Starts a conversation on a fresh connection.
    ///
    /// # Errors
    /// QEMU has closed the connection or does not speak the protocol.
    pub(crate) async fn open(stream: UnixStream) -> io::Result<Self> {
        let (reader, half) = stream.into_split();
        let pending = PendingAnswers::default();
        let (running_sender, running) = watch::channel(false);
        let stop = CancellationToken::new();
        let read = read_all(reader, pending.clone(), running_sender);
        tokio::spawn(stop.clone().run_until_cancelled_owned(read));
        let writer = tokio::sync::Mutex::new(Writer { half, next: 0 });
        let qmp = Self { writer, pending, running, _reader: stop.drop_guard() };
        qmp.execute("qmp_capabilities", Value::Null).await.map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Closes the connection: QEMU serves only one at a time.
    pub(crate) async fn close(&self) {
        let _ = self.writer.lock().await.half.shutdown().await;
    }

    /// Executes a command and returns its result.
    ///
    /// # Errors
    /// QEMU refuses it, has ended, or does not answer in time.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let answer = tokio::time::timeout(COMMAND_TIMEOUT, self.exchange(command, arguments)).await;
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
            lock(&self.pending).insert(id, answer);
            writer.half.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        }
        receiver.await.unwrap_or_else(|_| Err("QEMU ended".into()))
    }

    /// Stops the virtual processors. What the guest had written to its disks is then in their
    /// files.
    pub(crate) async fn stop(&self) -> Result<(), EngineError> {
        self.execute("stop", Value::Null)
            .await
            .map(drop)
            .map_err(command_error("stop the virtual processors"))
    }

    /// Resumes the virtual processors.
    pub(crate) async fn cont(&self) -> Result<(), EngineError> {
        self.execute("cont", Value::Null)
            .await
            .map(drop)
            .map_err(command_error("resume the virtual processors"))
    }

    /// Writes the state of all devices, without memory, to a file. The VM must be stopped.
    pub(crate) async fn save_devices(&self, path: &str) -> Result<(), EngineError> {
        // In spite of its name the command is not specific to Xen: it is a migration without
        // memory.
        let arguments = json!({ "filename": path, "live": true });
        let saved = self.execute("xen-save-devices-state", arguments).await;
        saved.map(drop).map_err(command_error("save the devices"))
    }

    /// Starts to send devices and memory to the socket at `path`. The VM must be stopped.
    pub(crate) async fn migrate_to_socket(&self, path: &str) -> Result<(), EngineError> {
        let send = async {
            // The default is meant for networks that carry other traffic, too.
            self.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 })).await?;
            self.execute("migrate", json!({ "uri": format!("unix:{path}") })).await
        };
        send.await.map(drop).map_err(command_error("send the memory"))
    }

    /// Checks that the migration is complete, after the socket was closed.
    ///
    /// # Errors
    /// It failed or was interrupted.
    pub(crate) async fn check_migration_completed(&self) -> Result<(), EngineError> {
        let sent = async {
            let answer = self.execute("query-migrate", Value::Null).await?;
            match answer["status"].as_str() {
                Some("completed") => Ok(()),
                _ => Err(answer["error-desc"].as_str().unwrap_or("it was interrupted").to_owned()),
            }
        };
        sent.await.map_err(command_error("send the memory"))
    }

    /// Loads devices, or devices and memory, that were written by either method, and returns once
    /// the VM runs.
    ///
    /// # Errors
    /// [`EngineError::Restore`] if QEMU cannot load them.
    pub(crate) async fn load_state(&self, path: &str) -> Result<(), EngineError> {
        let loaded = async {
            self.execute("migrate-incoming", json!({ "uri": format!("file:{path}") })).await?;
            let mut running = self.running.clone();
            running.wait_for(|running| *running).await.map(drop).map_err(|_| "QEMU ended".into())
        };
        match tokio::time::timeout(COMMAND_TIMEOUT, loaded).await {
            Ok(answer) => answer.map_err(|reason: String| EngineError::Restore(reason)),
            Err(_) => Err(EngineError::Timeout("loading the devices of the VM")),
        }
    }

    /// Returns the last part of the guest's console output.
    pub(crate) async fn console_tail(&self) -> String {
        let arguments = json!({ "device": "console", "size": 4096, "format": "utf8" });
        let output = self.execute("ringbuf-read", arguments).await.ok();
        output.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

fn command_error(step: &'static str) -> impl FnOnce(String) -> EngineError {
    move |reason| EngineError::Kernel { step, source: io::Error::other(reason) }
}

fn lock(pending: &PendingAnswers) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, String>>>> {
    pending.lock()
}

/// Reads messages until the connection ends and passes each answer to the task that waits for it.
/// Then all pending commands fail.
async fn read_all(half: OwnedReadHalf, pending: PendingAnswers, running: watch::Sender<bool>) {
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
        let Some(answer) = message["id"].as_u64().and_then(|id| lock(&pending).remove(&id)) else { continue };
        let result = match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(message["error"]["desc"].as_str().unwrap_or("refused").to_owned()),
        };
        let _ = answer.send(result);
    }
    lock(&pending).clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake monitor: greets, answers, and sends events between answers.
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
    async fn answers_and_errors_reach_their_commands() {
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
