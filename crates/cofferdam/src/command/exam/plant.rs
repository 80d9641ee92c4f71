//! [`Planted`]: the flags on the host that the probes try to reach: a file, a process, services on TCP and on an abstract socket.
//! They are removed when it is dropped.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::report::CaseResult;
use crate::failure::Failure;

/// The flags.
#[derive(Debug)]
pub(super) struct Planted {
    /// The text that must not be read.
    pub(super) text: String,
    directory: PathBuf,
    data_dir: PathBuf,
    process: Child,
    port: u16,
    abstract_name: String,
    /// Whether somebody connected to a planted service.
    connected: Arc<AtomicBool>,
    secrets: Vec<String>,
}

impl Planted {
    /// Plants the flags. `secrets` must not be found inside either.
    ///
    /// # Errors
    /// A flag cannot be planted.
    pub(super) fn new(data_dir: &Path, secrets: Vec<String>) -> Result<Self, Failure> {
        let text = format!("planted-{}", ids::random_hex::<16>());
        let name = format!("cofferdam-exam-{}", ids::random_hex::<8>());
        let directory = Path::new("/var/tmp").join(&name);
        fs::create_dir(&directory)?;
        // Readable by everyone who reaches it: the way there is what must be closed.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        fs::write(directory.join("flag"), &text)?;
        let process = Command::new("sleep").arg0(&name).arg("86400").stdin(Stdio::null()).spawn()?;
        let connected = Arc::new(AtomicBool::new(false));
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).or_else(|_| TcpListener::bind("0.0.0.0:0"))?;
        let port = listener.local_addr()?.port();
        serve(listener.incoming_owned(), &text, &connected);
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?;
        serve(socket.incoming_owned(), &text, &connected);
        Ok(Self {
            text,
            directory,
            data_dir: fs::canonicalize(data_dir)?,
            process,
            port,
            abstract_name: name,
            connected,
            secrets,
        })
    }

    /// Returns what the probes need to know, as JSON.
    pub(super) fn facts(&self, more: &Value) -> String {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut facts = json!({
            "text": self.text,
            "directory": self.directory,
            "file": self.directory.join("flag"),
            "data_dir": self.data_dir,
            "process": self.abstract_name,
            "pid": self.process.id(),
            "port": self.port,
            "abstract": self.abstract_name,
            "hostname": hostname,
            "addresses": own_addresses(),
            "secret_digests": self.secrets.iter().map(|secret| hex::encode(Sha256::digest(secret))).collect::<Vec<_>>(),
        });
        if let (Value::Object(facts), Value::Object(more)) = (&mut facts, more) {
            facts.extend(more.clone());
        }
        facts.to_string()
    }

    /// Checks the flags from outside: the file is as it was, the process lives, nobody connected to a service.
    pub(super) fn check_host(&mut self) -> Vec<CaseResult> {
        let file = fs::read_to_string(self.directory.join("flag")).is_ok_and(|text| text == self.text);
        let process = matches!(self.process.try_wait(), Ok(None));
        let services = !self.connected.load(Ordering::SeqCst);
        vec![
            CaseResult::of_host(
                "planted_file_unchanged",
                "changes the planted file of the host",
                "WRITE",
                file,
            ),
            CaseResult::of_host(
                "planted_process_alive",
                "ends the planted process of the host",
                "CRASH",
                process,
            ),
            CaseResult::of_host(
                "planted_services_unreached",
                "connects to a planted service of the host",
                "READ",
                services,
            ),
        ]
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Listeners as endless iterators that own them, for threads.
trait IncomingOwned {
    fn incoming_owned(self) -> impl Iterator<Item = io::Result<Box<dyn Write>>> + Send + 'static;
}

impl IncomingOwned for TcpListener {
    fn incoming_owned(self) -> impl Iterator<Item = io::Result<Box<dyn Write>>> + Send + 'static {
        std::iter::from_fn(move || Some(self.accept().map(|(stream, _)| Box::new(stream) as Box<dyn Write>)))
    }
}

impl IncomingOwned for UnixListener {
    fn incoming_owned(self) -> impl Iterator<Item = io::Result<Box<dyn Write>>> + Send + 'static {
        std::iter::from_fn(move || Some(self.accept().map(|(stream, _)| Box::new(stream) as Box<dyn Write>)))
    }
}

/// Says the text to everyone who connects, in a thread that ends with the program.
fn serve(
    incoming: impl Iterator<Item = io::Result<Box<dyn Write>>> + Send + 'static,
    text: &str,
    connected: &Arc<AtomicBool>,
) {
    let (text, connected) = (text.to_owned(), Arc::clone(connected));
    std::thread::spawn(move || {
        for stream in incoming.flatten() {
            connected.store(true, Ordering::SeqCst);
            let mut stream = stream;
            let _ = stream.write_all(text.as_bytes());
        }
    });
}

/// Returns the host's addresses, loopback among them.
fn own_addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let fib = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut address: Option<IpAddr> = None;
    for line in fib.lines() {
        if let Some(text) = line.trim().strip_prefix("|-- ") {
            address = text.parse().ok();
        } else if line.contains("/32 host LOCAL") {
            found.extend(address);
        }
    }
    let inet6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let hex = inet6.lines().filter_map(|line| u128::from_str_radix(line.split(' ').next()?, 16).ok());
    found.extend(hex.map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))));
    found.sort_unstable();
    found.dedup();
    found
}
