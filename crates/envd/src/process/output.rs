//! The task of a process: reads its output, sends it to the subscribers, and sends the end last.
//! Without subscribers output is read and dropped, so that the process never blocks;
//! with a slow subscriber reading pauses, so that nothing is lost.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::logs::Level;
use crate::process::memory_kill;
use crate::process::registry::{OutputEvent, Process};
use crate::state::Envd;

/// Maximum size of one read of a pipe or terminal, bytes.
const PIECE: usize = 32 * 1024;

/// The read ends of a process's pipes. A process on a terminal has none: its terminal is read instead.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Its standard output.
    pub stdout: Option<AsyncFd<OwnedFd>>,
    /// Its standard error.
    pub stderr: Option<AsyncFd<OwnedFd>>,
}

/// Runs until the end of the process has been delivered.
pub async fn run(
    envd: Arc<Envd>,
    process: Arc<Process>,
    pipes: Pipes,
    mut exit: oneshot::Receiver<ExitStatus>,
) {
    let (mut stdout, mut stderr) = (pipes.stdout, pipes.stderr);
    let mut terminal = process.terminal.as_ref();
    let mut status = None;
    let status = loop {
        if let Some(status) = status
            && (process.in_hurry() || (stdout.is_none() && stderr.is_none() && terminal.is_none()))
        {
            break status;
        }
        let event = tokio::select! {
            piece = read(stdout.as_ref()) => keep(piece, &mut stdout).map(OutputEvent::Stdout),
            piece = read(stderr.as_ref()) => keep(piece, &mut stderr).map(OutputEvent::Stderr),
            piece = read(terminal) => keep(piece, &mut terminal).map(OutputEvent::Pty),
            ended = &mut exit, if status.is_none() => {
                // The sender is dropped unused only with the whole registry.
                let Ok(ended) = ended else { return };
                status = Some(ended);
                None
            }
            () = process.hurried() => None,
        };
        if let Some(event) = event {
            process.deliver(event).await;
        }
    };
    // All output of the process itself is in the pipes by now, even if other processes still hold them open.
    drain(&process, stdout.as_ref(), OutputEvent::Stdout).await;
    drain(&process, stderr.as_ref(), OutputEvent::Stderr).await;
    drain(&process, terminal, OutputEvent::Pty).await;
    let reason = memory_reason(&envd, &process, status).await;
    let end = envd.processes.ended(&process, status, reason.as_deref());
    let mut fields = vec![("pid", process.pid.to_string()), ("status", end.status.clone())];
    fields.extend(reason.map(|reason| ("reason", reason)));
    envd.logs.add(Level::Info, "process", "process ended", &fields);
    process.deliver_end(end).await;
}

/// Returns why the process died, if it was for want of memory.
async fn memory_reason(envd: &Arc<Envd>, process: &Process, status: ExitStatus) -> Option<String> {
    let known = process.memory_kills()?;
    if status.success() {
        return None;
    }
    let asked = Arc::clone(envd);
    let explained = tokio::task::spawn_blocking(move || asked.processes.memory_kills.explain(status, known));
    let limit = envd.settings().limits.map(|limits| limits.memory);
    explained.await.unwrap_or(false).then(|| memory_kill::reason(limit))
}

/// Waits for a piece of output. It is empty at the end of the stream; without a stream this never returns.
async fn read(fd: Option<&AsyncFd<OwnedFd>>) -> Bytes {
    let Some(fd) = fd else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = fd.readable().await else { return Bytes::new() };
        match ready.try_io(|fd| read_now(fd.get_ref())) {
            Ok(Ok(piece)) => return piece,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal reports an error instead of an end when its last process has closed it.
            Ok(Err(_)) => return Bytes::new(),
            Err(_not_ready) => {}
        }
    }
}

fn read_now(fd: &OwnedFd) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    rustix::io::read(fd, rustix::buffer::spare_capacity(&mut piece))?;
    // Most pieces are short and may stay in a queue for long.
    piece.shrink_to_fit();
    Ok(piece.into())
}

/// Returns the piece, or drops the stream if the piece marks its end.
fn keep<T>(piece: Bytes, stream: &mut Option<T>) -> Option<Bytes> {
    if piece.is_empty() {
        *stream = None;
        return None;
    }
    Some(piece)
}

/// Delivers what can be read without waiting, up to the capacity of a pipe: other processes may go on writing.
async fn drain(process: &Process, fd: Option<&AsyncFd<OwnedFd>>, event: fn(Bytes) -> OutputEvent) {
    let Some(fd) = fd else { return };
    let mut left: usize = 1 << 20;
    while left > 0 {
        match read_now(fd.get_ref()) {
            Ok(piece) if !piece.is_empty() => {
                left = left.saturating_sub(piece.len());
                process.deliver(event(piece)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
