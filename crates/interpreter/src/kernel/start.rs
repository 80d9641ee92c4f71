//! Starts the kernels of each language with their environment.
//! All run as the interpreter's user; for root the home is root's, as in E2B's template.
//! If the directory of a context does not exist, its kernel starts in the default directory.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::args::Serve;
use crate::envd::Env;
use crate::error::Error;
use crate::files;
use crate::kernel::driver::{self, Dialect, Pipes};
use crate::kernel::jupyter::{self, Endpoint};
use crate::kernel::zygote::Zygote;
use crate::kernel::{Kernel, Link, MAX_WAITING_EVENTS};
use crate::language::Language;
use crate::reaper::{Process, Reaper};

/// Time limit of a start. Java or R take some seconds on a busy host.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Directories of npm's global modules.
const GLOBAL_MODULES: &str = "/usr/local/lib/node_modules:/usr/lib/node_modules:/usr/share/nodejs";

const NODE: &str = "exec 3<&0 </dev/null; exec node --no-warnings \"$0\" \"$1\"";
/// Does what `IRkernel::main` does, and prints a line when its sockets listen.
const R: &str = "kernel <- IRkernel:::Kernel$new(connection_file = commandArgs(TRUE)[[1]]); writeLines('listening'); flush(stdout()); kernel$run()";
const R_LISTENS: &str = "listening";
/// For `Driver.reseed`, `sun.misc.Signal`, and a small, quick start.
const JAVA: &[&str] = &[
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
];

/// Starts kernels.
#[derive(Debug)]
pub(crate) struct Starter {
    reaper: Reaper,
    home: PathBuf,
    python: PathBuf,
    preload: Vec<String>,
    drop_zygote: bool,
    /// Environment of every kernel, besides the sandbox's variables.
    env: Env,
    default_cwd: PathBuf,
    zygote: Mutex<Option<Zygote>>,
}

impl Starter {
    pub(crate) fn new(args: &Serve, reaper: Reaper) -> Self {
        Self {
            reaper,
            home: args.home.clone(),
            python: args.python.clone(),
            preload: args.preload.clone(),
            drop_zygote: args.drop_zygote,
            env: environment(),
            default_cwd: args.cwd.clone(),
            zygote: Mutex::default(),
        }
    }

    /// Starts a kernel in `cwd` with the sandbox's variables.
    pub(crate) async fn start(&self, language: Language, cwd: &Path, global: &Env) -> Result<Kernel, Error> {
        let cwd = if cwd.is_dir() { cwd } else { &self.default_cwd };
        let mut env = self.env.clone();
        env.extend(global.iter().map(|(name, value)| (name.clone(), value.clone())));
        let starting = async {
            match language {
                Language::Python => self.python(cwd, env).await,
                Language::R => self.r(cwd, env).await,
                _ => self.driver(language, cwd, env).await,
            }
        };
        let slow = |_| Error::Slow { language, seconds: START_TIMEOUT.as_secs() };
        tokio::time::timeout(START_TIMEOUT, starting).await.map_err(slow)?
    }

    async fn python(&self, cwd: &Path, env: Env) -> Result<Kernel, Error> {
        let endpoint = Endpoint::new()?;
        let (process, listens) = match self.fork(&endpoint, cwd, &env).await {
            // The zygote has just ended; the next attempt starts a new one.
            Err(Error::Link(_)) => self.fork(&endpoint, cwd, &env).await?,
            done => done?,
        };
        let listens = async { listens.await.map_err(|_| broken()) };
        connect(Language::Python, &endpoint, process, env, listens).await
    }

    async fn fork(
        &self,
        endpoint: &Endpoint,
        cwd: &Path,
        env: &Env,
    ) -> Result<(Process, oneshot::Receiver<()>), Error> {
        let mut kept = self.zygote.lock().await;
        let mut zygote = match kept.take() {
            Some(zygote) if zygote.is_fresh() => zygote,
            // Ended before the new one starts: two at once would take twice the memory.
            old => {
                drop(old);
                Zygote::start(&self.reaper, &self.python, &self.home, &self.preload, &self.env).await?
            }
        };
        let forked = zygote.fork(&endpoint.connection_file(), cwd, env).await?;
        *kept = (!self.drop_zygote).then_some(zygote);
        Ok(forked)
    }

    async fn r(&self, cwd: &Path, env: Env) -> Result<Kernel, Error> {
        let endpoint = Endpoint::new()?;
        let mut command = Command::new("R");
        command
            .args(["--slave", "-e", R, "--args"])
            .arg(endpoint.connection_file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let (mut child, process) = self.spawn(&mut command, cwd, &env)?;
        let stdout: OwnedFd = child.stdout.take().expect("piped above").into();
        let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(stdout).map_err(Error::Link)?);
        let listens = async {
            let mut line = String::new();
            while lines.read_line(&mut line).await.map_err(Error::Link)? > 0 {
                if line.trim_end().ends_with(R_LISTENS) {
                    // The rest is not needed, but R must be able to write.
                    tokio::spawn(async move { tokio::io::copy(&mut lines, &mut tokio::io::sink()).await });
                    return Ok(());
                }
                line.clear();
            }
            Err(broken())
        };
        connect(Language::R, &endpoint, process, env, listens).await
    }

    async fn driver(&self, language: Language, cwd: &Path, env: Env) -> Result<Kernel, Error> {
        let (mut command, dialect) = match language {
            Language::Bash => {
                let mut command = Command::new("bash");
                command.args(["--norc", "--noprofile", "--noediting", "-i"]);
                (command, Dialect::Bash)
            }
            Language::Java => {
                // Already done in the template. Elsewhere it blocks on purpose: the reaper must not reap its child.
                files::compile(&self.home)?;
                let mut command = Command::new("java");
                command.args(JAVA).arg("-cp").arg(self.home.join("java")).arg("Driver");
                (command, Dialect::Words)
            }
            _ => {
                let mut command = Command::new("sh");
                command.args(["-c", NODE]).arg(self.home.join("node/main.cjs")).arg(language.name());
                command.env("NODE_PATH", GLOBAL_MODULES);
                (command, Dialect::Words)
            }
        };
        let (ours, theirs) = UnixStream::pair().map_err(Error::Link)?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, process) = self.spawn(&mut command, cwd, &env)?;
        // Drops the interpreter's copy of the driver's end, so that the stream ends with the driver.
        drop(command);
        let stdout = child.stdout.take().expect("piped above").into();
        let stderr = child.stderr.take().expect("piped above").into();
        let (sender, events) = mpsc::channel(MAX_WAITING_EVENTS);
        let pipes = Pipes { control: ours, stdout, stderr };
        let guard = KillOnDrop(Some(process));
        let process = guard.0.as_ref().expect("set above");
        let client = tokio::select! {
            client = driver::DriverClient::connect(pipes, dialect, sender) => client.map_err(Error::Link)?,
            ended = process.ended() => return Err(Error::EndedEarly { language, ended }),
        };
        let link = Link::Driver(client);
        // Java's variables are properties, of which it has none yet.
        let base = if language == Language::Java { Env::new() } else { env };
        Ok(Kernel { language, process: guard.keep(), link, events, base })
    }

    fn spawn(
        &self,
        command: &mut Command,
        cwd: &Path,
        env: &Env,
    ) -> Result<(std::process::Child, Process), Error> {
        let set: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
        command.env_clear().envs(env).current_dir(cwd);
        command.envs(set.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let program = command.get_program().to_string_lossy().into_owned();
        self.reaper.spawn(command).map_err(|source| Error::Start { program, source })
    }
}

/// Connects to a Jupyter kernel as soon as it listens.
async fn connect(
    language: Language,
    endpoint: &Endpoint,
    process: Process,
    base: Env,
    listens: impl Future<Output = Result<(), Error>>,
) -> Result<Kernel, Error> {
    let (sender, events) = mpsc::channel(MAX_WAITING_EVENTS);
    let guard = KillOnDrop(Some(process));
    let process = guard.0.as_ref().expect("set above");
    let connecting = async {
        listens.await?;
        jupyter::JupyterClient::connect(endpoint, sender).await
    };
    let client = tokio::select! {
        client = connecting => client?,
        ended = process.ended() => return Err(Error::EndedEarly { language, ended }),
    };
    let link = Link::Jupyter(client);
    Ok(Kernel { language, process: guard.keep(), link, events, base })
}

fn broken() -> Error {
    Error::Link(std::io::ErrorKind::BrokenPipe.into())
}

/// Kills a process if its start fails or takes too long.
struct KillOnDrop(Option<Process>);

impl KillOnDrop {
    fn keep(mut self) -> Process {
        self.0.take().expect("taken only here")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}

/// Returns the interpreter's own environment, with root's home if it runs as root.
fn environment() -> Env {
    let own = std::env::vars_os();
    let mut env: Env =
        own.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    env.retain(|name, _| !name.starts_with("SUDO_") && name != "INTERPRETER_LOG");
    if rustix::process::geteuid().is_root() {
        for (name, value) in [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")] {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    for (name, value) in [
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("TERM", "dumb"),
    ] {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    env
}
