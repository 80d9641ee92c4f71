//! A kernel of ours: a program that reads requests from a socket, its standard input, and answers there in lines.
//! What it and its children write to their outputs is read from pipes, and always before the line that follows it.
//! bash is its own driver: it reads commands, and its answers are commands of ours that it runs.

use std::io;
use std::os::fd::OwnedFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::kernel::{Outcome, Said};
use crate::prepare::{Prepare, shell, words};

/// How requests are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Words,
    Bash,
}

/// A child in the background may write for ever; what it writes after this comes later.
const MAX_READS: usize = 64;

/// Where bash answers; user code uses the low numbers.
const BASH_ANSWERS: u8 = 61;

/// Our side of a running driver.
#[derive(Debug)]
pub(crate) struct Client {
    control: OwnedWriteHalf,
    dialect: Dialect,
    count: u64,
    /// Weak: once the reader has ended, there is nothing more to hear.
    said: mpsc::WeakSender<Said>,
    _reader: JoinSet<()>,
}

/// What a driver was started with.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) control: std::os::unix::net::UnixStream,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Client {
    /// Waits until the driver is ready; what it says goes to `said`.
    pub(crate) async fn connect(
        pipes: Pipes,
        dialect: Dialect,
        said: mpsc::Sender<Said>,
    ) -> io::Result<Self> {
        pipes.control.set_nonblocking(true)?;
        let (read, control) = tokio::net::UnixStream::from_std(pipes.control)?.into_split();
        let (tell_ready, ready) = oneshot::channel();
        let weak = said.downgrade();
        let reader = Reader {
            control: BufReader::new(read),
            stdout: Output::new(pipes.stdout, Said::Stdout)?,
            stderr: Output::new(pipes.stderr, Said::Stderr)?,
            said,
            ready: Some(tell_ready),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = reader.run().await {
                tracing::debug!("a driver's link ended: {error}");
            }
        });
        let mut client = Self { control, dialect, count: 0, said: weak, _reader: tasks };
        if dialect == Dialect::Bash {
            let begin = format!(
                "exec {BASH_ANSWERS}>&0; set +H +m; PS1= PS2= PROMPT_COMMAND=; printf 'ready\\n' >&{BASH_ANSWERS}\n"
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
                if let Some(said) = self.said.upgrade() {
                    // There is room: what was left of an earlier run has been taken out.
                    let _ = said.try_send(Said::Count(self.count));
                }
                // Two commands: an interrupt ends the first, and the second still answers.
                let code = shell(code);
                format!("eval {code} </dev/null\nprintf 'status %s\\n' \"$?\" >&{BASH_ANSWERS}\n")
            }
        };
        self.control.write_all(request.as_bytes()).await
    }

    /// For drivers that read while code runs.
    pub(crate) async fn interrupt(&mut self) -> io::Result<()> {
        self.control.write_all(words("interrupt", &[]).as_bytes()).await
    }

    /// Needs no answer: requests are read in order.
    pub(crate) async fn prepare(&mut self, change: &Prepare) -> io::Result<()> {
        let request = if self.dialect == Dialect::Bash { change.bash() } else { change.words() };
        self.control.write_all(request.as_bytes()).await
    }
}

struct Reader {
    control: BufReader<OwnedReadHalf>,
    stdout: Output,
    stderr: Output,
    said: mpsc::Sender<Said>,
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
                    // Cancelled between two chunks, it goes on where it was.
                    if line.ends_with(b"\n") {
                        self.flush().await?;
                        self.answer(&String::from_utf8_lossy(&line)).await?;
                        line.clear();
                    }
                }
                filled = self.stdout.fill() => {
                    filled?;
                    self.stdout.pass_on(&self.said).await?;
                }
                filled = self.stderr.fill() => {
                    filled?;
                    self.stderr.pass_on(&self.said).await?;
                }
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush(&self.said).await?;
        self.stderr.flush(&self.said).await
    }

    async fn answer(&mut self, line: &str) -> io::Result<()> {
        let mut rest = line.trim_end().split(' ');
        let verb = rest.next().unwrap_or_default();
        let rest: Vec<&str> = rest.collect();
        if verb == "ready" {
            // What it wrote while starting is not for a client.
            self.ready.take().map(|ready| ready.send(()));
            return Ok(());
        }
        for said in understand(verb, &rest) {
            self.said.send(said).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

/// What a line means; one that means nothing was written by user code, and is dropped.
fn understand(verb: &str, rest: &[&str]) -> Vec<Said> {
    let word = |index: usize| {
        let bytes = rest.get(index).and_then(|word| STANDARD.decode(word).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match verb {
        "count" => word(0).parse().map(Said::Count).into_iter().collect(),
        "out" => vec![Said::Stdout(word(0))],
        "err" => vec![Said::Stderr(word(0))],
        "result" => match serde_json::from_str(&word(1)) {
            Ok(data) => vec![Said::Result { main: word(0) == "1", data }],
            Err(_) => Vec::new(),
        },
        "error" => vec![Said::Error { name: word(0), value: word(1), traceback: word(2) }],
        "done" => vec![Said::Done(Outcome::Done)],
        "status" => {
            let code = rest.first().copied().unwrap_or("0");
            let failed = (code != "0").then(|| Said::Error {
                name: String::new(),
                value: code.to_owned(),
                traceback: String::new(),
            });
            failed.into_iter().chain([Said::Done(Outcome::Done)]).collect()
        }
        _ => Vec::new(),
    }
}

/// One of the pipes that a driver writes to.
struct Output {
    pipe: Receiver,
    /// The start of a character whose end has not come yet.
    partial: Vec<u8>,
    closed: bool,
    say: fn(String) -> Said,
}

impl Output {
    fn new(pipe: OwnedFd, say: fn(String) -> Said) -> io::Result<Self> {
        Ok(Self { pipe: Receiver::from_owned_fd(pipe)?, partial: Vec::new(), closed: false, say })
    }

    /// Waits for something to read, and reads it. May be cancelled: nothing is awaited after reading.
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

    /// Passes on what is there now. Asks the kernel, as tokio may not have heard of it yet.
    async fn flush(&mut self, said: &mpsc::Sender<Said>) -> io::Result<()> {
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
            self.pass_on(said).await?;
        }
        self.pass_on(said).await
    }

    async fn pass_on(&mut self, said: &mpsc::Sender<Said>) -> io::Result<()> {
        match complete(&mut self.partial) {
            Some(text) => said.send((self.say)(text)).await.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }
}

/// Takes what is whole; bytes that never become a character are replaced.
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

/// Bytes at the end that may be the start of a character.
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
    fn characters_are_not_cut_and_garbage_is_replaced() {
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
    fn lines_of_user_code_mean_nothing() {
        assert_eq!(understand("hello", &["world"]), []);
        assert_eq!(understand("result", &["MQ==", "bm8="]), []);
        assert_eq!(understand("status", &["0"]), [Said::Done(Outcome::Done)]);
        assert_eq!(understand("status", &["3"]).len(), 2);
    }
}
