//! Kernels that are not Jupyter's: drivers that read requests from a socket, their standard input, and respond there in lines.
//! The output of a driver and its children is read from pipes, and always before the line that follows it.
//! bash is its own driver: it reads commands, and the interpreter's commands make it write the responses.

use std::io;
use std::os::fd::OwnedFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::kernel::{KernelEvent, Outcome};
use crate::kernel_env::{EnvChange, shell, words};

/// The format of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Words,
    Bash,
}

/// Maximum number of reads before the next line: a child in the background may write endlessly.
const MAX_READS: usize = 64;

/// The descriptor of bash's responses; user code uses the low numbers.
const BASH_RESPONSES: u8 = 61;

/// The connection to a running driver.
#[derive(Debug)]
pub(crate) struct DriverClient {
    control: OwnedWriteHalf,
    dialect: Dialect,
    count: u64,
    /// Weak, so that the channel closes when the reader ends.
    events: mpsc::WeakSender<KernelEvent>,
    _reader: JoinSet<()>,
}

/// The interpreter's ends of a driver's streams.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) control: std::os::unix::net::UnixStream,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl DriverClient {
    /// Waits until the driver is ready. Its events are sent to `events`.
    pub(crate) async fn connect(
        pipes: Pipes,
        dialect: Dialect,
        events: mpsc::Sender<KernelEvent>,
    ) -> io::Result<Self> {
        pipes.control.set_nonblocking(true)?;
        let (read, control) = tokio::net::UnixStream::from_std(pipes.control)?.into_split();
        let (tell_ready, ready) = oneshot::channel();
        let weak = events.downgrade();
        let reader = Reader {
            control: BufReader::new(read),
            stdout: OutputPipe::new(pipes.stdout, KernelEvent::Stdout)?,
            stderr: OutputPipe::new(pipes.stderr, KernelEvent::Stderr)?,
            events,
            ready: Some(tell_ready),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = reader.run().await {
                tracing::debug!(%error, "the connection to a driver ended");
            }
        });
        let mut client = Self { control, dialect, count: 0, events: weak, _reader: tasks };
        if dialect == Dialect::Bash {
            let begin = format!(
                "exec {BASH_RESPONSES}>&0; set +H +m; PS1= PS2= PROMPT_COMMAND=; printf 'ready\\n' >&{BASH_RESPONSES}\n"
            );
            client.control.write_all(begin.as_bytes()).await?;
        }
        ready.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(client)
    }

    pub(crate) async fn run(&mut self, code: &str) -> io::Result<()> {
        let request = match self.dialect {
            Dialect::Words => words("run", &[code]),
            Dialect::Bash => {
                self.count += 1;
                if let Some(events) = self.events.upgrade() {
                    // There is room: the events of an earlier run have been removed.
                    let _ = events.try_send(KernelEvent::Count(self.count));
                }
                // Two commands: an interrupt ends the first, and the second still responds.
                let code = shell(code);
                format!("eval {code} </dev/null\nprintf 'status %s\\n' \"$?\" >&{BASH_RESPONSES}\n")
            }
        };
        self.control.write_all(request.as_bytes()).await
    }

    /// Interrupts code by a request, for drivers that read while code runs.
    pub(crate) async fn interrupt(&mut self) -> io::Result<()> {
        self.control.write_all(words("interrupt", &[]).as_bytes()).await
    }

    /// Changes the environment. There is no response: requests are processed in order.
    pub(crate) async fn prepare(&mut self, change: &EnvChange) -> io::Result<()> {
        let request = if self.dialect == Dialect::Bash { change.bash() } else { change.words() };
        self.control.write_all(request.as_bytes()).await
    }
}

struct Reader {
    control: BufReader<OwnedReadHalf>,
    stdout: OutputPipe,
    stderr: OutputPipe,
    events: mpsc::Sender<KernelEvent>,
    ready: Option<oneshot::Sender<()>>,
}

impl Reader {
    async fn run(mut self) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            tokio::select! {
                read = self.control.read_until(b'\n', &mut line) => {
                    if read? == 0 {
                        self.flush().await?;
                        return Ok(());
                    }
                    // Cancelled between two chunks, it continues where it was.
                    if line.ends_with(b"\n") {
                        self.flush().await?;
                        self.answer(&String::from_utf8_lossy(&line)).await?;
                        line.clear();
                    }
                }
                filled = self.stdout.fill() => {
                    filled?;
                    self.stdout.send(&self.events).await?;
                }
                filled = self.stderr.fill() => {
                    filled?;
                    self.stderr.send(&self.events).await?;
                }
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush(&self.events).await?;
        self.stderr.flush(&self.events).await
    }

    async fn answer(&mut self, line: &str) -> io::Result<()> {
        let mut rest = line.trim_end().split(' ');
        let verb = rest.next().unwrap_or_default();
        let rest: Vec<&str> = rest.collect();
        if verb == "ready" {
            // OutputPipe during the start is not sent to a client.
            self.ready.take().map(|ready| ready.send(()));
            return Ok(());
        }
        for events in parse_events(verb, &rest) {
            self.events.send(events).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

/// Parses a line. Malformed lines were written by user code and are dropped.
fn parse_events(verb: &str, rest: &[&str]) -> Vec<KernelEvent> {
    let word = |index: usize| {
        let bytes = rest.get(index).and_then(|word| STANDARD.decode(word).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match verb {
        "count" => word(0).parse().map(KernelEvent::Count).into_iter().collect(),
        "out" => vec![KernelEvent::Stdout(word(0))],
        "err" => vec![KernelEvent::Stderr(word(0))],
        "result" => match serde_json::from_str(&word(1)) {
            Ok(data) => vec![KernelEvent::Result { main: word(0) == "1", data }],
            Err(_) => Vec::new(),
        },
        "error" => vec![KernelEvent::Error { name: word(0), value: word(1), traceback: word(2) }],
        "done" => vec![KernelEvent::Done(Outcome::Done)],
        "status" => {
            let code = rest.first().copied().unwrap_or("0");
            let failed = (code != "0").then(|| KernelEvent::Error {
                name: String::new(),
                value: code.to_owned(),
                traceback: String::new(),
            });
            failed.into_iter().chain([KernelEvent::Done(Outcome::Done)]).collect()
        }
        _ => Vec::new(),
    }
}

/// A pipe of a driver's output.
struct OutputPipe {
    pipe: Receiver,
    /// The beginning of a character that has not arrived completely.
    partial: Vec<u8>,
    closed: bool,
    make_event: fn(String) -> KernelEvent,
}

impl OutputPipe {
    fn new(pipe: OwnedFd, make_event: fn(String) -> KernelEvent) -> io::Result<Self> {
        Ok(Self { pipe: Receiver::from_owned_fd(pipe)?, partial: Vec::new(), closed: false, make_event })
    }

    /// Waits for output and reads it. Cancel safe: nothing is awaited after reading.
    async fn fill(&mut self) -> io::Result<()> {
        if self.closed {
            std::future::pending::<()>().await;
        }
        let mut buffer = [0; 1 << 14];
        loop {
            self.pipe.readable().await?;
            match self.pipe.try_read(&mut buffer) {
                Ok(read) => {
                    self.closed = read == 0;
                    self.partial.extend_from_slice(&buffer[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the output that is available now. It reads without waiting for tokio's readiness, which may lag behind.
    async fn flush(&mut self, events: &mpsc::Sender<KernelEvent>) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 14];
        for _ in 0..MAX_READS {
            if self.closed {
                break;
            }
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut buffer)) {
                Ok(read) => {
                    self.closed = read == 0;
                    self.partial.extend_from_slice(&buffer[..read]);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
            self.send(events).await?;
        }
        self.send(events).await
    }

    async fn send(&mut self, events: &mpsc::Sender<KernelEvent>) -> io::Result<()> {
        match complete(&mut self.partial) {
            Some(text) => {
                events.send((self.make_event)(text)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
            None => Ok(()),
        }
    }
}

/// Removes and returns the complete characters; invalid bytes are replaced.
fn complete(bytes: &mut Vec<u8>) -> Option<String> {
    let whole = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => bytes.len() - unfinished(bytes),
    };
    if whole == 0 {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
    bytes.drain(..whole);
    Some(text)
}

/// Counts the bytes at the end that may be the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|count| {
            let tail = &bytes[bytes.len() - count..];
            tail[0] >= 0xc0 && std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_split_and_invalid_bytes_are_replaced() {
        let mut bytes = b"a\xc3".to_vec();
        assert_eq!(complete(&mut bytes).as_deref(), Some("a"));
        bytes.extend(b"\xa9b");
        assert_eq!(complete(&mut bytes).as_deref(), Some("\u{e9}b"));
        let mut bytes = b"\xff\xf0\x9f".to_vec();
        assert_eq!(complete(&mut bytes).as_deref(), Some("\u{fffd}"));
        assert_eq!(bytes, b"\xf0\x9f");
        assert_eq!(complete(&mut bytes), None);
    }

    #[test]
    fn malformed_lines_are_dropped() {
        assert_eq!(parse_events("hello", &["world"]), []);
        assert_eq!(parse_events("result", &["MQ==", "bm8="]), []);
        assert_eq!(parse_events("status", &["0"]), [KernelEvent::Done(Outcome::Done)]);
        assert_eq!(parse_events("status", &["3"]).len(), 2);
    }
}
