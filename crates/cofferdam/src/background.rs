//! Starts the server as a background process, and finds the one that runs on a data directory.
//! It gets a process group of its own, so that Ctrl-C at the terminal does not stop it.
//! It is ready when it prints its line on standard output; if it exits without one, its log has the reason.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cofferdam_client::{Client, ClientConfig};

use crate::failure::Failure;
use crate::paths::{DataDir, ServerNote};

/// Maximum time for a server to start; adopting many sandboxes takes some seconds.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of last lines of the log that a failure quotes.
const TAIL_LINES: usize = 15;

/// Arguments of the server to start.
#[derive(Debug)]
pub(crate) struct ServerLaunch<'a> {
    pub(crate) data: &'a DataDir,
    pub(crate) listen: SocketAddr,
    pub(crate) layers_dir: &'a Path,
    pub(crate) envd: PathBuf,
    pub(crate) criu: PathBuf,
    /// Further arguments of `serve`.
    pub(crate) more: Vec<String>,
}

/// Returns the server that runs on a data directory, if it answers. The file that names it may be left over from a crash.
pub(crate) async fn running(data: &DataDir) -> Option<ServerNote> {
    let note = ServerNote::read(&data.server_note())?;
    if !Path::new("/proc").join(note.pid.to_string()).exists() {
        // Another server may have the port now.
        return None;
    }
    let config = ClientConfig { request_timeout: Duration::from_secs(5), ..ClientConfig::at(&note.url) };
    Client::new(config).ok()?.health().await.ok()?;
    Some(note)
}

/// Checks that an address can be listened on.
///
/// # Errors
/// It cannot; the message suggests another.
pub(crate) fn check_free(listen: SocketAddr) -> Result<(), Failure> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let other = SocketAddr::new(listen.ip(), listen.port().wrapping_add(80));
            Err(Failure::new(format!(
                "{listen} is taken by another program; choose another address, as in `--listen {other}`"
            )))
        }
        Err(error) => Err(Failure::new(format!(
            "cannot listen on {listen}: {error}; choose another address with --listen"
        ))),
    }
}

/// Starts a server and blocks until it is ready.
///
/// # Errors
/// It exited or was not ready in time; the message quotes the end of its log.
pub(crate) fn start(launch: &ServerLaunch<'_>) -> Result<ServerNote, Failure> {
    check_free(launch.listen)?;
    let log_path = launch.data.log();
    let log = File::options().create(true).append(true).open(&log_path)?;
    let mut server = Command::new(std::env::current_exe()?)
        .arg("serve")
        .arg("--data-dir")
        .arg(&launch.data.data_dir)
        .arg("--layers-dir")
        .arg(launch.layers_dir)
        .arg("--envd")
        .arg(&launch.envd)
        .arg("--criu")
        .arg(&launch.criu)
        .args(["--listen", &launch.listen.to_string()])
        .args(&launch.more)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let output = server.stdout.take().expect("standard output is piped");
    let (sender, first_line) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(output).read_line(&mut line);
        let _ = sender.send(line);
    });
    let why = match first_line.recv_timeout(START_TIMEOUT) {
        Ok(line) => match line.trim().strip_prefix("listening on ") {
            // The server has written more of itself beside.
            Some(url) => {
                let note = ServerNote { url: url.to_owned(), pid: server.id(), domain: None };
                return Ok(ServerNote::read(&launch.data.server_note()).unwrap_or(note));
            }
            None => "the server ended before it was ready",
        },
        Err(_) => "the server is not ready after two minutes",
    };
    let _ = server.kill();
    let _ = server.wait();
    Err(Failure::new(format!("{why}; the end of {}:\n{}", log_path.display(), tail(&log_path))))
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
