//! Starts processes: user, working directory, environment, pipes or terminal.
//! A process is started under the registry's lock, so that it cannot be reaped before it is registered.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use connectrpc::ConnectError;
use envd_api::process::StartRequest;
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::process::{Resource, Rlimit, Signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::identity::Identity;
use crate::logs::Level;
use crate::paths;
use crate::process::output::{self, Pipes};
use crate::process::pty;
use crate::process::registry::{InputTarget, OutputEvent, Process, ProcessRegistry};
use crate::state::Envd;
use crate::sys::{self, Program};
use crate::users::User;

/// Search path if envd's own environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Tag of the platform's helper processes: any number of processes may have it.
const SHARED_TAG: &str = "_system";

/// The limit on open files that envd was started with. Child processes get it back.
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// Raises envd's own limit on open files: it holds up to three per process.
pub fn raise_open_files() {
    let limit = *OPEN_FILES.get_or_init(|| rustix::process::getrlimit(Resource::Nofile));
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Starts a process. Returns it with a subscription to all its output. It is killed at `deadline`.
pub async fn start(
    envd: &Arc<Envd>,
    user: &User,
    request: StartRequest,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, mpsc::Receiver<OutputEvent>), ConnectError> {
    let config = request.process.into_option().unwrap_or_default();
    if config.cmd.is_empty() {
        return Err(ConnectError::invalid_argument("no command given"));
    }
    let (env, workdir) = {
        let settings = envd.settings();
        (settings.process_env(), settings.default_workdir.clone())
    };
    let cwd = paths::resolve(config.cwd.as_deref().unwrap_or(""), &user.home, workdir.as_deref())
        .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
    // The directory may be on a filesystem that blocks: not on this thread.
    let (groups, exists) = {
        let (user, cwd) = (user.clone(), cwd.clone());
        tokio::task::spawn_blocking(move || (user.groups(), cwd.exists()))
            .await
            .map_err(|error| ConnectError::internal(error.to_string()))?
    };
    if !exists {
        return Err(ConnectError::invalid_argument(format!("cwd '{}' does not exist", cwd.display())));
    }
    let env = environment(user, env, config.envs.iter());
    let terminal_size = request.pty.as_option().map(pty::size);
    let program = program(&config.cmd, &config.args, &env, &cwd, user, groups, terminal_size.is_some())?;

    let failed = |error: std::io::Error| start_error(&config.cmd, &error);
    let ends = match terminal_size {
        Some(size) => StdioEnds::terminal(size, user).map_err(|e| failed(e.into()))?,
        None => StdioEnds::pipes(request.stdin.unwrap_or(true)).map_err(failed)?,
    };

    let StdioEnds { child, pipes, input, terminal } = ends;
    let make = |pid| {
        let (exit, exited) = oneshot::channel();
        let memory_kills = envd.processes.memory_kills.known();
        let tag = request.tag.clone();
        (Process::new(pid, tag, config.clone(), terminal, input, exit, memory_kills), exited)
    };
    let (process, exited) = match spawn_registered(envd, program, child, request.tag.as_deref(), make)? {
        Ok(started) => started,
        Err(error) => {
            return Err(refused_directory(user, &cwd, &error).await.unwrap_or_else(|| failed(error)));
        }
    };

    log_start(envd, &process, user);
    let events = process.subscribe().expect("the end is only delivered by the task below");
    tokio::spawn(supervise(Arc::clone(envd), Arc::clone(&process), pipes, exited, deadline));
    Ok((process, events))
}

/// Starts a program with these standard streams and registers the process that `make` describes. Fails with an error for the client if
/// its tag is taken, and with the kernel's otherwise.
fn spawn_registered<T>(
    envd: &Envd,
    program: Program,
    [stdin, stdout, stderr]: [Stdio; 3],
    tag: Option<&str>,
    make: impl FnOnce(u32) -> (Process, T),
) -> Result<std::io::Result<(Arc<Process>, T)>, ConnectError> {
    let mut processes = envd.processes.lock_for_start();
    if let Some(tag) = tag
        && tag != SHARED_TAG
        && ProcessRegistry::has_tag(&processes, tag)
    {
        return Err(ConnectError::already_exists(format!("process with tag {tag} already runs")));
    }
    Ok(sys::spawn(program, stdin, stdout, stderr).map(|pid| {
        let (process, more) = make(pid);
        let process = Arc::new(process);
        processes.insert(pid, Arc::clone(&process));
        (process, more)
    }))
}

fn log_start(envd: &Envd, process: &Process, user: &User) {
    let config = &process.config;
    let command = std::iter::once(&config.cmd).chain(&config.args).map(String::as_str);
    let fields = [
        ("pid", process.pid.to_string()),
        ("command", command.collect::<Vec<_>>().join(" ")),
        ("username", user.name.clone()),
        ("cwd", config.cwd.clone().unwrap_or_default()),
        ("tag", process.tag.clone().unwrap_or_default()),
    ];
    envd.logs.add(Level::Info, "process", "process started", &fields);
}

/// Reads the process's output to its end, and kills the process at its deadline.
async fn supervise(
    envd: Arc<Envd>,
    process: Arc<Process>,
    pipes: Pipes,
    exited: oneshot::Receiver<ExitStatus>,
    deadline: Option<Instant>,
) {
    let mut output = std::pin::pin!(output::run(envd, Arc::clone(&process), pipes, exited));
    let Some(deadline) = deadline else { return output.await };
    tokio::select! {
        () = &mut output => return,
        () = tokio::time::sleep_until(deadline.into()) => {}
    }
    let _ = process.signal(Signal::KILL);
    output.await;
}

/// Both ends of a process's standard streams.
struct StdioEnds {
    child: [Stdio; 3],
    pipes: Pipes,
    input: InputTarget,
    terminal: Option<AsyncFd<OwnedFd>>,
}

impl StdioEnds {
    fn terminal(size: rustix::termios::Winsize, user: &User) -> rustix::io::Result<Self> {
        let (master, slave) = pty::open(size, user)?;
        let master = sys::awaitable(master).map_err(|_| rustix::io::Errno::NOMEM)?;
        let child = [slave.try_clone(), slave.try_clone(), Ok(slave)];
        let [Ok(stdin), Ok(stdout), Ok(stderr)] = child else { return Err(rustix::io::Errno::MFILE) };
        Ok(Self {
            child: [stdin.into(), stdout.into(), stderr.into()],
            pipes: Pipes::default(),
            input: InputTarget::Terminal,
            terminal: Some(master),
        })
    }

    fn pipes(with_stdin: bool) -> std::io::Result<Self> {
        let (stdin, input) = if with_stdin {
            let (theirs, ours) = pipe()?;
            (theirs.into(), Some(nonblocking(ours)?))
        } else {
            (Stdio::from(sys::null()?), None)
        };
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        Ok(Self {
            child: [stdin, their_stdout.into(), their_stderr.into()],
            pipes: Pipes { stdout: Some(nonblocking(stdout)?), stderr: Some(nonblocking(stderr)?) },
            input: InputTarget::Pipe(input),
            terminal: None,
        })
    }
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Makes envd's end of a pipe nonblocking. The child's end stays blocking, because it is another file description.
fn nonblocking(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    sys::awaitable(fd)
}

/// Returns the whole environment: the user's variables, overridden by the sandbox's and then by the request's.
fn environment<'a>(
    user: &User,
    sandbox: BTreeMap<String, String>,
    request: impl Iterator<Item = (&'a String, &'a String)>,
) -> BTreeMap<String, String> {
    let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), path.unwrap_or_else(|| DEFAULT_PATH.to_owned())),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    env.extend(sandbox);
    env.extend(request.map(|(name, value)| (name.clone(), value.clone())));
    env
}

fn program(
    cmd: &str,
    args: &[String],
    env: &BTreeMap<String, String>,
    cwd: &Path,
    user: &User,
    groups: Vec<u32>,
    terminal: bool,
) -> Result<Program, ConnectError> {
    let argv = std::iter::once(cmd).chain(args.iter().map(String::as_str)).map(c_string);
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    Ok(Program {
        candidates: candidates(cmd, path).map(|path| c_string(&path)).collect::<Result<_, _>>()?,
        argv: argv.collect::<Result<_, _>>()?,
        env: env
            .iter()
            .map(|(name, value)| c_string(&format!("{name}={value}")))
            .collect::<Result<_, _>>()?,
        cwd: CString::new(cwd.as_os_str().as_bytes()).map_err(|_| nul())?,
        uid: user.uid,
        gid: user.gid,
        groups,
        terminal,
        open_files: *OPEN_FILES.get_or_init(|| rustix::process::getrlimit(Resource::Nofile)),
        not_found: format!("/bin/sh: 1: exec: {cmd}: not found\n").into_bytes(),
        not_allowed: format!("/bin/sh: 1: exec: {cmd}: Permission denied\n").into_bytes(),
    })
}

/// Returns the possible paths of a command: itself if it contains a slash, else in each directory of the search path.
fn candidates(cmd: &str, path: &str) -> impl Iterator<Item = String> {
    let direct = cmd.contains('/').then(|| cmd.to_owned());
    let searched = if direct.is_some() { "" } else { path };
    let searched = searched.split(':').filter(|dir| !dir.is_empty()).map(move |dir| format!("{dir}/{cmd}"));
    direct.into_iter().chain(searched).collect::<Vec<_>>().into_iter()
}

fn c_string(text: &str) -> Result<CString, ConnectError> {
    CString::new(text).map_err(|_| nul())
}

fn nul() -> ConnectError {
    ConnectError::invalid_argument("command, arguments, environment and cwd must not contain NUL bytes")
}

/// Returns an error that names the working directory if the user's lack of rights in it is why a start failed: the program of the
/// command is not to blame.
async fn refused_directory(user: &User, cwd: &Path, error: &std::io::Error) -> Option<ConnectError> {
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return None;
    }
    let (name, dir) = (user.name.clone(), cwd.to_owned());
    let user = user.clone();
    let can_enter = move || {
        let enter = || accessat(CWD, &dir, Access::EXEC_OK, AtFlags::EACCESS);
        matches!(Identity::of(&user).run(enter), Ok(Ok(())))
    };
    if tokio::task::spawn_blocking(can_enter).await.unwrap_or(true) {
        return None;
    }
    let text = format!("cwd '{}' cannot be entered by user '{name}': permission denied", cwd.display());
    Some(ConnectError::invalid_argument(text))
}

fn start_error(cmd: &str, error: &std::io::Error) -> ConnectError {
    let message = format!("error starting process '{cmd}': {error}");
    match rustix::io::Errno::from_io_error(error) {
        // No process, memory or descriptor left: the same request may succeed later.
        Some(
            rustix::io::Errno::AGAIN
            | rustix::io::Errno::NOMEM
            | rustix::io::Errno::MFILE
            | rustix::io::Errno::NFILE,
        ) => ConnectError::resource_exhausted(message),
        _ => ConnectError::invalid_argument(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_like_a_shell() {
        let found = |cmd: &str| candidates(cmd, "/a:/b:").collect::<Vec<_>>();
        assert_eq!(found("ls"), ["/a/ls", "/b/ls"]);
        assert_eq!(found("./ls"), ["./ls"]);
    }

    #[test]
    fn later_variables_win() {
        let user = User { name: "u".into(), uid: 1, gid: 1, home: "/home/u".into() };
        let sandbox =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("HOME".to_owned(), "/x".to_owned())]);
        let request = BTreeMap::from([("A".to_owned(), "2".to_owned())]);
        let env = environment(&user, sandbox, request.iter());
        assert_eq!((env["A"].as_str(), env["HOME"].as_str(), env["USER"].as_str()), ("2", "/x", "u"));
    }
}
