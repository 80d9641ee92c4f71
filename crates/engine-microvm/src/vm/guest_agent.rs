//! The control channel to the guest agent: one stream, requests with ids, one answer to each.
//!
//! User code may have taken over the guest agent. So answers have a time limit and frames a maximum
//! size, and nothing that is received is trusted beyond "done", which matters only to that guest
//! itself.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_api::{
    Call, CallOutcome, Decoded, Decoder, GuestIdentity, GuestMessage, HostRequest, SYNC_MARK, Seed, encode,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time limit for a request; a busy emulated guest needs some of it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

type PendingAnswers = Arc<Mutex<HashMap<u64, oneshot::Sender<CallOutcome>>>>;

/// What the guest has reported about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum GuestStatus {
    Starting,
    Ready,
    Broken(String),
}

/// A connection to the guest agent of one VM.
#[derive(Debug)]
pub(crate) struct GuestAgent {
    writer: tokio::sync::Mutex<Writer>,
    pending: PendingAnswers,
    status: watch::Receiver<GuestStatus>,
    _reader: DropGuard,
}

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    next: u64,
}

impl GuestAgent {
    /// Starts a conversation on a fresh connection; answers to an earlier server are dropped.
    ///
    /// # Errors
    /// QEMU has closed the connection.
    pub(crate) async fn open(stream: UnixStream) -> io::Result<Self> {
        let (reader, mut half) = stream.into_split();
        half.write_all(&SYNC_MARK).await?;
        let pending = PendingAnswers::default();
        let (status_sender, status) = watch::channel(GuestStatus::Starting);
        let stop = CancellationToken::new();
        let read = read_all(reader, pending.clone(), status_sender);
        tokio::spawn(stop.clone().run_until_cancelled_owned(read));
        let writer = tokio::sync::Mutex::new(Writer { half, next: 0 });
        Ok(Self { writer, pending, status, _reader: stop.drop_guard() })
    }

    /// Closes the connection: QEMU serves only one at a time.
    pub(crate) async fn close(&self) {
        let _ = self.writer.lock().await.half.shutdown().await;
    }

    /// Waits until the guest reports that it is ready.
    ///
    /// # Errors
    /// It does not in that time, or reports that it never will. The text is for the operator.
    pub(crate) async fn wait_until_ready(&self, timeout: Duration) -> Result<(), String> {
        let mut status = self.status.clone();
        match tokio::time::timeout(timeout, status.wait_for(|now| *now != GuestStatus::Starting)).await {
            Err(_) => Err(format!("the guest was not ready after {} s", timeout.as_secs())),
            Ok(Err(_)) => Err("QEMU ended".into()),
            Ok(Ok(now)) => match &*now {
                GuestStatus::Broken(reason) => Err(format!("the guest could not be made ready: {reason}")),
                _ => Ok(()),
            },
        }
    }

    /// Gives the guest fresh randomness, the time, its host name and limits, then resumes user
    /// code.
    ///
    /// # Errors
    /// The guest did not confirm all of it: the sandbox must not be used.
    pub(crate) async fn personalize(
        &self,
        hostname: &str,
        boot_id: Option<String>,
        pids: u32,
    ) -> Result<(), String> {
        let mut seed = vec![0; 64];
        getrandom::fill(&mut seed).map_err(|error| error.to_string())?;
        let seed = Seed::new(seed).map_err(|error| error.to_string())?;
        let hostname = hostname.to_owned();
        let identity =
            GuestIdentity { realtime_ns: realtime_ns(), seed, hostname, boot_id, pids: Some(pids) };
        self.call(Call::Personalize(identity)).await
    }

    /// Freezes user code and syncs the guest's disk.
    ///
    /// # Errors
    /// The guest does not confirm it.
    pub(crate) async fn quiesce(&self) -> Result<(), String> {
        self.call(Call::Quiesce {}).await
    }

    /// Sets the clock and resumes user code.
    ///
    /// # Errors
    /// The guest does not confirm it.
    pub(crate) async fn resume(&self) -> Result<(), String> {
        self.call(Call::Resume { realtime_ns: realtime_ns() }).await
    }

    async fn call(&self, call: Call) -> Result<(), String> {
        let outcome = tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(call)).await;
        match outcome.unwrap_or_else(|_| Err("the guest agent does not answer".into()))? {
            CallOutcome::Done => Ok(()),
            CallOutcome::Failed { reason } => Err(format!("the guest agent failed: {}", truncate(&reason))),
        }
    }

    async fn exchange(&self, call: Call) -> Result<CallOutcome, String> {
        let (answer, receiver) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            writer.next += 1;
            let id = writer.next;
            let frame = encode(&HostRequest { id, call }).map_err(|error| error.to_string())?;
            lock(&self.pending).insert(id, answer);
            writer.half.write_all(&frame).await.map_err(|error| error.to_string())?;
        }
        receiver.await.map_err(|_| "QEMU ended".into())
    }
}

/// Shortens a text of the guest for the log: it may have a megabyte.
fn truncate(reason: &str) -> String {
    const MAX_CHARS: usize = 500;
    reason.chars().take(MAX_CHARS).collect()
}

fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(pending: &PendingAnswers) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<CallOutcome>>> {
    pending.lock()
}

/// Reads messages until the connection ends and passes each answer to the task that waits for it. A
/// message that cannot be decoded is skipped; a request whose answer is lost runs into its time
/// limit.
async fn read_all(mut half: OwnedReadHalf, pending: PendingAnswers, status: watch::Sender<GuestStatus>) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    let mut is_synced = false;
    while let Ok(length) = half.read(&mut buffer).await
        && length > 0
    {
        decoder.push(&buffer[..length]);
        while let Ok(Some(item)) = decoder.pop::<GuestMessage>() {
            match item {
                Decoded::Sync => is_synced = true,
                // Part of an earlier conversation.
                Decoded::Message(_) if !is_synced => {}
                Decoded::Message(GuestMessage::Ready {}) => drop(status.send_replace(GuestStatus::Ready)),
                Decoded::Message(GuestMessage::Broken { reason }) => {
                    drop(status.send_replace(GuestStatus::Broken(truncate(&reason))));
                }
                Decoded::Message(GuestMessage::Answer { id, outcome }) => {
                    let waiter = lock(&pending).remove(&id);
                    let _ = waiter.map(|waiter| waiter.send(outcome));
                }
            }
        }
    }
    lock(&pending).clear();
}
