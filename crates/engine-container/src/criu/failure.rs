//! Why CRIU failed, in plain words: the lines of its log that are known, and what they mean for the sandbox's owner.
//! The log itself is for the operator: it has pids, device numbers and paths of the host.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use engine::EngineError;
use rustix::fs::statfs;

use crate::refusal::refusal;

/// A failure of CRIU: its response, and the errors in its log.
#[derive(Debug)]
pub(super) struct Failure {
    response: String,
    errors: Vec<String>,
}

/// Maximum number of errors of a log that are looked at, and of those that the server's own log repeats.
const MAX_ERRORS: usize = 64;
const MAX_REPEATED: usize = 4;

/// What is known of CRIU's refusals: a part of a line of its log, and the end of a sentence that begins with a program.
const REASONS: &[(&str, &str)] = &[
    ("OOM storing pipe", "has more pipes open than can be captured (1,024 in the whole sandbox)"),
    (
        "on an in-flight socket",
        "has sent data over a connection to a Unix socket that nobody has accepted yet",
    ),
    (
        "closed in-flight socket",
        "has a Unix socket with a waiting connection that its other end has closed already",
    ),
    (
        "In-flight connection on non-listening",
        "has a connection to a Unix socket that nobody listens on any more",
    ),
    ("half of stream unix connection", "has a connection to a Unix socket outside of what can be captured"),
    ("External socket is used", "has a connection to a Unix socket outside of what can be captured"),
    ("name-less external socket", "has a connection to a Unix socket outside of what can be captured"),
    ("Can't dump that handle", "watches a file with inotify that has been deleted"),
    ("Can't find suitable path for handle", "watches a file with inotify that has been deleted"),
    ("Unaccessible path opened", "has a file open whose name now belongs to another file"),
    (
        "Can't link remap to",
        "has a deleted file open that has another name, in a directory where none can be added",
    ),
    ("is too long", "uses a directory or file whose path is too long"),
    ("File name too long", "uses a directory or file whose path is too long"),
    (
        "memfd in victim: Too many open files",
        "has as many files open as it may (RLIMIT_NOFILE), and the capture needs a few more",
    ),
    ("PIDFD_THREAD flag", "has a pidfd of a thread open (PIDFD_THREAD)"),
    ("packetized mode for pipes", "has a pipe in packet mode open (O_DIRECT)"),
    ("found while seizing", "is being traced, by a debugger or strace"),
    ("Unseizable non-zombie", "waits in the kernel for something that does not come"),
    ("Can't make VM id", "shares its memory with another process (clone)"),
    ("Can't make FS id", "shares its directories with another process (clone)"),
    ("Can't make FILES id", "shares its open files with another process (clone)"),
    ("opt: Bad file descriptor", "has the file of a deleted Unix socket open (O_PATH)"),
    ("[io_uring]", "uses io_uring"),
    ("[userfaultfd]", "uses userfaultfd"),
    ("[landlock-ruleset]", "has a ruleset of Landlock open"),
    ("Unknown shit", "has a file of a kind open that cannot be captured"),
    ("Can't lookup mount", "has a file open that is in no directory of the sandbox"),
];

/// `MQUEUE_MAGIC`: the file system of POSIX message queues.
const MESSAGE_QUEUE: i64 = 0x1980_0202;
/// Maximum number of descriptors of a process that are looked at for a reason.
const MAX_DESCRIPTORS: usize = 4096;

impl Failure {
    /// Reads CRIU's log. Its responses rarely contain the reason of a failure.
    pub(super) fn new(log: &Path, response: String) -> Self {
        // Line by line: what programs have open can make it long.
        let lines = File::open(log).into_iter().flat_map(|log| BufReader::new(log).split(b'\n'));
        let errors = lines.map_while(Result::ok).filter_map(|line| message(&line)).take(MAX_ERRORS).collect();
        Self { response, errors }
    }

    /// Returns the reason for the operator.
    pub(super) fn text(&self) -> String {
        if self.errors.is_empty() {
            return self.response.clone();
        }
        self.errors[..self.errors.len().min(MAX_REPEATED)].join("; ")
    }

    /// Returns the error of a dump: for the sandbox's owner if it is known, otherwise for the operator.
    pub(super) fn of_dump(&self) -> EngineError {
        let culprit = self.errors.iter().find_map(|error| named_process(error));
        let known = self.errors.iter().find_map(|error| reason(error));
        let open = culprit.filter(|_| known.is_none() || self.has_unnamed_file()).and_then(open_kind);
        match open.or(known) {
            Some(reason) => refusal(culprit, reason),
            None => EngineError::Capture(format!("its memory could not be captured: {}", self.text())),
        }
    }

    /// Whether CRIU did not find the file system of an open file, which may have several reasons.
    fn has_unnamed_file(&self) -> bool {
        self.errors.iter().any(|error| error.contains("Can't lookup mount"))
    }
}

/// Returns the message of a line of the log that is an error.
fn message(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let (_, error) = line.split_once("Error (")?;
    let (_, message) = error.split_once("): ").filter(|_| !error.contains("RLIMIT_NOFILE for self"))?;
    Some(message.trim().to_owned())
}

/// Returns the meaning of a line.
fn reason(error: &str) -> Option<&'static str> {
    REASONS.iter().find(|(part, _)| error.contains(part)).map(|(_, reason)| *reason)
}

/// Returns the pid in a line such as `Dump files (pid: 4242) failed with -1`, or `Can't make VM id for 4242`.
fn named_process(error: &str) -> Option<i32> {
    let number = error.split_once(" id for ").or_else(|| error.split_once("(pid: "))?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Returns what a process has open that CRIU has no words for.
fn open_kind(pid: i32) -> Option<&'static str> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    descriptors.take(MAX_DESCRIPTORS).filter_map(Result::ok).find_map(|descriptor| {
        let link = descriptor.path();
        // A queue's path is its name. Others are not asked: a file system that a process serves might not answer.
        let has_name = fs::read_link(&link).is_ok_and(|target| target.parent() == Some(Path::new("/")));
        let is_queue = has_name && statfs(&link).is_ok_and(|info| info.f_type == MESSAGE_QUEUE);
        is_queue.then_some("has a POSIX message queue open")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(log: &str) -> Failure {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), log).unwrap();
        Failure::new(file.path(), "no reason".to_owned())
    }

    #[test]
    fn known_failures_name_the_program_and_nothing_of_the_host() {
        let pid = std::process::id();
        let known = failure(&format!(
            "(00.01) Warn  (criu/x.c:1): text\n(00.02) Error (criu/pipes.c:419): OOM storing pipe\n\
             (00.02) Error (criu/cr-dump.c:1545): Dump files (pid: {pid}) failed with -1\n"
        ));
        let EngineError::Uncapturable(text) = known.of_dump() else { panic!("{known:?}") };
        assert!(text.contains("more pipes open") && text.contains(&format!("(process {pid})")), "{text}");
        assert!(text.contains("memory: false") && !text.contains("criu"), "{text}");
        // Ended meanwhile.
        let ended =
            failure("Error (criu/pipes.c:1): OOM storing pipe\nError (x): Dump files (pid: 0) failed\n");
        assert!(ended.of_dump().for_clients().contains("a program in it has more pipes open"));
    }

    #[test]
    fn unknown_failures_are_for_the_operator() {
        let unknown = failure("(00.01) Error (criu/y.c:7): something new in /var/lib\n");
        assert!(unknown.of_dump().to_string().contains("something new"));
        assert!(!unknown.of_dump().for_clients().contains("/var/lib"));
        assert_eq!(failure("").text(), "no reason");
    }
}
