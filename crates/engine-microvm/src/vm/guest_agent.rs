//! The control channel to the agent in a guest: one stream, requests with ids, an answer each.
//! A guest may have been taken over by what runs in it: answers have a time, frames have a size, and nothing said here is believed
//! beyond "it is done", which only matters to that very guest.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_api::{
    Call, CallOutcome, Decoded, Decoder, GuestIdentity, GuestMessage, HostRequest, SYNC_MARK, Seed, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Time for a request; a busy emulated guest needs some of it.
const PATIENCE: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<CallOutcome>>>>;

/// How far a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum GuestStatus {
    Starting,
    Ready,
    Broken(String),
}

/// A connection to one guest's agent.
#[derive(Debug)]
pub(crate) struct GuestAgent {
    writer: tokio::sync::Mutex<Writer>,
    waiting: Waiting,
    progress: watch::Receiver<GuestStatus>,
    _reader: DropGuard,
}

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    next: u64,
}

impl GuestAgent {
    /// Begins the conversation on a fresh connection, whatever an earlier server had said.
    ///
    /// # Errors
    /// The other side is gone.
    pub(crate) async fn open(stream: UnixStream) -> io::Result<Self> {
        let (reader, mut half) = stream.into_split();
        half.write_all(&SYNC_MARK).await?;
        let waiting = Waiting::default();
        let (tell, progress) = watch::channel(GuestStatus::Starting);
        let stop = CancellationToken::new();
        let follow = read_all(reader, waiting.clone(), tell);
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
        let writer = tokio::sync::Mutex::new(Writer { half, next: 0 });
        Ok(Self { writer, waiting, progress, _reader: stop.drop_guard() })
    }

    /// Ends the conversation: the other side takes up one at a time.
    pub(crate) async fn close(&self) {
        let _ = self.writer.lock().await.half.shutdown().await;
    }

    /// Waits until the guest says that it is ready.
    ///
    /// # Errors
    /// It is not in that time, or never will be; the reason is for people.
    pub(crate) async fn wait_until_ready(&self, patience: Duration) -> Result<(), String> {
        let mut progress = self.progress.clone();
        match tokio::time::timeout(patience, progress.wait_for(|now| *now != GuestStatus::Starting)).await {
            Err(_) => Err(format!("the guest was not ready in {} s", patience.as_secs())),
            Ok(Err(_)) => Err("the machine ended".into()),
            Ok(Ok(now)) => match &*now {
                GuestStatus::Broken(reason) => Err(format!("the guest could not be made ready: {reason}")),
                _ => Ok(()),
            },
        }
    }

    /// Makes the guest one of its own, then lets user code go on.
    ///
    /// # Errors
    /// The guest did not confirm all of it: it must not be used.
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
        let revive = GuestIdentity { realtime_ns: realtime_ns(), seed, hostname, boot_id, pids: Some(pids) };
        self.call(Call::Personalize(revive)).await
    }

    /// Stops user code and writes what it wrote to its disk.
    ///
    /// # Errors
    /// The guest does not say that it did.
    pub(crate) async fn quiesce(&self) -> Result<(), String> {
        self.call(Call::Quiesce {}).await
    }

    /// Sets the clock and lets user code go on.
    ///
    /// # Errors
    /// The guest does not say that it did.
    pub(crate) async fn resume(&self) -> Result<(), String> {
        self.call(Call::Resume { realtime_ns: realtime_ns() }).await
    }

    async fn call(&self, call: Call) -> Result<(), String> {
        let outcome = tokio::time::timeout(PATIENCE, self.exchange(call)).await;
        match outcome.unwrap_or_else(|_| Err("the guest's agent does not answer".into()))? {
            CallOutcome::Done => Ok(()),
            CallOutcome::Failed { reason } => Err(format!("the guest's agent failed: {}", truncate(&reason))),
        }
    }

    async fn exchange(&self, call: Call) -> Result<CallOutcome, String> {
        let (answer, receiver) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            writer.next += 1;
            let id = writer.next;
            let frame = encode(&HostRequest { id, call }).map_err(|error| error.to_string())?;
            lock(&self.waiting).insert(id, answer);
            writer.half.write_all(&frame).await.map_err(|error| error.to_string())?;
        }
        receiver.await.map_err(|_| "the machine ended".into())
    }
}

/// As much of a guest's words as a log needs: it may say a megabyte.
fn truncate(reason: &str) -> String {
    const MOST: usize = 500;
    reason.chars().take(MOST).collect()
}

fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<CallOutcome>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to whom they are for. What cannot be understood is passed over; whoever waits for it runs out of time.
async fn read_all(mut half: OwnedReadHalf, waiting: Waiting, progress: watch::Sender<GuestStatus>) {
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
                // Of an earlier conversation.
                Decoded::Message(_) if !is_synced => {}
                Decoded::Message(GuestMessage::Ready {}) => drop(progress.send_replace(GuestStatus::Ready)),
                Decoded::Message(GuestMessage::Broken { reason }) => {
                    drop(progress.send_replace(GuestStatus::Broken(truncate(&reason))));
                }
                Decoded::Message(GuestMessage::Answer { id, outcome }) => {
                    let waiter = lock(&waiting).remove(&id);
                    let _ = waiter.map(|waiter| waiter.send(outcome));
                }
            }
        }
    }
    lock(&waiting).clear();
}
