//! Processes of servers: each in a process group of its own, with a limit for its memory, its errors in the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rmcp::RoleClient;
use rmcp::transport::async_rw::AsyncRwTransport;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::error::Error;
use crate::limits::{MAX_WORDS, SERVER_MEMORY};

/// How long a server has to end after its input has ended.
const GRACE: Duration = Duration::from_secs(2);

/// What to execute.
pub(crate) struct Words {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) dir: PathBuf,
}

/// A server's process and its children. They end when it is dropped.
pub(crate) struct Process {
    child: Option<Child>,
    group: Pid,
    last_words: Arc<Mutex<String>>,
}

/// A transport over a process's input and output.
pub(crate) type Pipes = AsyncRwTransport<RoleClient, ChildStdout, ChildStdin>;

/// Starts a server's process.
///
/// # Errors
/// The program cannot be executed.
pub(crate) fn spawn(
    server: &str,
    words: &Words,
    env: &BTreeMap<String, String>,
) -> Result<(Process, Pipes), Error> {
    let mut command = Command::new(&words.program);
    command.args(&words.args).envs(env).current_dir(&words.dir).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |reason: String| Error::Start { server: server.to_owned(), reason };
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("{} cannot be executed: {error}", words.program.display())))?;
    let group = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        .ok_or_else(|| failed("it has no process id".to_owned()))?;
    // Data, not address space: language runtimes reserve far more addresses than they use.
    let limit = Rlimit { current: Some(SERVER_MEMORY), maximum: Some(SERVER_MEMORY) };
    let _ = rustix::process::prlimit(Some(group), Resource::Data, limit);
    let (Some(input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("it has no pipes".to_owned()));
    };
    let last_words = Arc::default();
    tokio::spawn(read_errors(server.to_owned(), errors, Arc::clone(&last_words)));
    Ok((Process { child: Some(child), group, last_words }, AsyncRwTransport::new_client(output, input)))
}

/// Copies a server's errors to the log, and keeps the last of them for messages.
async fn read_errors(server: String, mut errors: ChildStderr, last_words: Arc<Mutex<String>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = errors.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..count]);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            tracing::info!(server, "{line}");
        }
        let mut last = last_words.lock();
        last.push_str(&text);
        if last.len() > MAX_WORDS {
            let from = last.len() - MAX_WORDS;
            let from = (from..last.len()).find(|at| last.is_char_boundary(*at)).unwrap_or(from);
            last.drain(..from);
        }
    }
}

impl Process {
    /// The end of what it wrote to its standard error.
    pub(crate) fn last_words(&self) -> String {
        self.last_words.lock().trim().to_owned()
    }

    /// Why a start failed: what the process wrote, its exit, or else the error that was met.
    pub(crate) async fn why_ended(&self, error: &str) -> String {
        // Its output and its end arrive in any order.
        let mut ended = None;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ended = exit_of(self.group);
            if ended.is_some() && !self.last_words.lock().is_empty() {
                break;
            }
        }
        let what = ended.unwrap_or_else(|| format!("it does not speak MCP on its output ({error})"));
        let words = self.last_words();
        if words.is_empty() { what } else { format!("{what}: {words}") }
    }

    /// Kills it and its children.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
    }

    /// Memory of the processes of its group that no other process has, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let group = self.group.as_raw_nonzero().to_string();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let own = processes.filter(|path| {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            // The name, in parentheses, may contain anything.
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2)) == Some(group.as_str())
        });
        own.map(|path| {
            private_memory(&std::fs::read_to_string(path.join("smaps_rollup")).unwrap_or_default())
        })
        .sum()
    }
}

fn private_memory(rollup: &str) -> u64 {
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>() * 1024
}

/// How a process ended, without reaping it: as long as it is not reaped, nobody else can have its process group.
fn exit_of(pid: Pid) -> Option<String> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::Pid(pid), options).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        let (Some(mut child), group) = (self.child.take(), self.group) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return self.kill() };
        runtime.spawn(async move {
            // Its input has ended, which tells a server to end.
            for _ in 0..GRACE.as_millis() / 50 {
                if exit_of(group).is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            let _ = child.wait().await;
        });
    }
}
