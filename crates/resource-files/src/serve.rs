//! The server: reads the kernel's requests one at a time and replies at once, unless a sandbox makes too many. It never waits for a
//! sandbox and keeps nothing for an open file, so a sandbox that is frozen, killed or hostile leaves nothing behind.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use engine_host::{Hierarchies, group_name, uid_base_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::content::{ENTRIES, Loads, Source, find};
use crate::control::Control;
use crate::host::HostFacts;
use crate::nodes::{Node, ROOT};
use crate::protocol::{self, Attributes, Operation, Request};
use crate::rates::{Rates, TICK};

/// How long the content of a file is used again. Reading a control group makes the kernel add up the counts of all processors, which a
/// sandbox that reads in a loop would let the host pay for.
const FRESH: Duration = Duration::from_millis(20);
/// Beginning of the names of files that are not used again, because a program looks for a change right after it.
const EVENTS: &str = "memory.events";
/// Maximum number of contents that are kept.
const MAX_KEPT: usize = 4096;
/// Time between two samples of the load averages.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Serves the connection `device`, an open `/dev/fuse`, until nothing is mounted from it any more. A connection may have been
/// served by another process before.
///
/// # Errors
/// The connection cannot be read, or `/proc` cannot.
pub fn serve(device: impl AsFd, hierarchies: &Hierarchies) -> io::Result<()> {
    let host = HostFacts::read()?;
    let loads = Loads::default();
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let (host, loads) = (&host, &loads);
        scope.spawn(move || sample(hierarchies, host, loads, &end));
        let mut server = Server { hierarchies, host, loads, rates: Rates::default(), kept: HashMap::new() };
        let served = server.run(device.as_fd());
        drop(ended);
        served
    })
}

/// Takes samples of the load averages until the other end of `end` is dropped.
fn sample(hierarchies: &Hierarchies, host: &HostFacts, loads: &Loads, end: &mpsc::Receiver<()>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = end.recv_timeout(SAMPLE_EVERY) {
        loads.sample(|range| {
            let name = group_name(range << 16);
            Some(Control { hierarchies, host, name: &name }.cpu_use().ok()?.total())
        });
    }
}

struct Server<'a> {
    hierarchies: &'a Hierarchies,
    host: &'a HostFacts,
    loads: &'a Loads,
    rates: Rates,
    /// Contents by node, and when they were computed.
    kept: HashMap<u64, (Instant, String)>,
}

impl Server<'_> {
    fn run(&mut self, device: impl AsFd) -> io::Result<()> {
        // Of a process that has died in the middle of a request.
        let _ = rustix::io::write(&device, &protocol::resend());
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            if self.rates.is_any_waiting() && !self.answer_waiting(&device)? {
                continue;
            }
            let length = match rustix::io::read(&device, &mut buffer[..]) {
                Ok(length) => length,
                // The caller of the request has given up.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let bytes = &buffer[..length];
            let Some(request) = Request::parse(bytes) else { continue };
            let sandbox = Node::of(request.node).filter(|_| request.is_awaited());
            if sandbox.is_none_or(|node| self.rates.admit(node.range, bytes, Instant::now())) {
                self.answer(&device, &request);
            }
        }
    }

    fn answer(&mut self, device: impl AsFd, request: &Request<'_>) {
        if let Some(reply) = self.reply(request) {
            // Fails when the caller was killed meanwhile.
            let _ = rustix::io::write(device, &reply);
        }
    }

    /// Responds to the requests that have waited long enough. Returns whether there is a new one, after waiting for it for a moment.
    fn answer_waiting(&mut self, device: impl AsFd) -> io::Result<bool> {
        for bytes in self.rates.due(Instant::now()) {
            if let Some(request) = Request::parse(&bytes) {
                self.answer(&device, &request);
            }
        }
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&tick)) {
            Err(Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    fn reply(&mut self, request: &Request<'_>) -> Option<Vec<u8>> {
        let unique = request.unique;
        let reply = match request.operation {
            Operation::Forget => return None,
            Operation::Init => Ok(protocol::init(unique)),
            Operation::Lookup(name) => {
                self.look_up(request.node, name).map(|node| protocol::entry(unique, attributes(node)))
            }
            Operation::GetAttributes if request.node == ROOT => {
                Ok(protocol::attributes(unique, Attributes { node: ROOT, is_directory: true }))
            }
            Operation::GetAttributes => {
                node(request.node).map(|node| protocol::attributes(unique, attributes(node)))
            }
            Operation::Open => Ok(protocol::opened(unique, false)),
            Operation::OpenDirectory => Ok(protocol::opened(unique, true)),
            Operation::Release => Ok(protocol::data(unique, &[])),
            Operation::Statistics => Ok(protocol::statistics(unique)),
            Operation::ReadDirectory { offset, size } => {
                Ok(protocol::entries(unique, &children(request.node), offset, size))
            }
            Operation::Read { offset, size } => {
                self.read(request, offset, size).map(|bytes| protocol::data(unique, bytes))
            }
            Operation::Other => Err(Errno::NOSYS),
        };
        Some(reply.unwrap_or_else(|errno| protocol::failure(unique, errno)))
    }

    fn look_up(&self, parent: u64, name: &[u8]) -> Result<Node, Errno> {
        if parent != ROOT {
            let parent = node(parent)?;
            let index = find(parent.index, name).ok_or(Errno::NOENT)?;
            return Ok(Node { index, ..parent });
        }
        let uid_base = str::from_utf8(name).ok().and_then(uid_base_of).ok_or(Errno::NOENT)?;
        let name = group_name(uid_base);
        if !self.hierarchies.unified.join(&name).is_dir() {
            return Err(Errno::NOENT);
        }
        let control = Control { hierarchies: self.hierarchies, host: self.host, name: &name };
        self.loads.begin(uid_base >> 16, control.cpu_use().map_or(0, |used| used.total()));
        Ok(Node::top(uid_base))
    }

    /// Returns the bytes at `offset` of a file. The content is computed when a file is read from its beginning.
    fn read(&mut self, request: &Request<'_>, offset: u64, size: u32) -> Result<&[u8], Errno> {
        let node = node(request.node)?;
        let content = node.entry().content.ok_or(Errno::ISDIR)?;
        let fresh = if node.entry().name.starts_with(EVENTS) { Duration::ZERO } else { FRESH };
        let is_usable = |(at, _): &(Instant, String)| offset > 0 || at.elapsed() < fresh;
        if !self.kept.get(&request.node).is_some_and(is_usable) {
            let control = Control {
                hierarchies: self.hierarchies,
                host: self.host,
                name: &group_name(node.uid_base()),
            };
            let source = Source { control, loads: self.loads, range: node.range, pid: request.pid };
            let text = content(&source).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if self.kept.len() >= MAX_KEPT {
                self.kept.clear();
            }
            self.kept.insert(request.node, (Instant::now(), text));
        }
        let (_, text) = self.kept.get(&request.node).ok_or(Errno::IO)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(size as usize).min(text.len());
        Ok(&text.as_bytes()[start..end])
    }
}

fn node(number: u64) -> Result<Node, Errno> {
    Node::of(number).ok_or(Errno::NOENT)
}

fn attributes(node: Node) -> Attributes {
    Attributes { node: node.number(), is_directory: node.entry().content.is_none() }
}

/// Returns the entries of a directory. The root seems empty: the server opens the directories of sandboxes by name.
fn children(number: u64) -> Vec<(Attributes, &'static str)> {
    let Some(parent) = Node::of(number) else { return Vec::new() };
    let all = ENTRIES.iter().enumerate().skip(1).filter(|(_, entry)| entry.parent == parent.index);
    all.map(|(index, entry)| (attributes(Node { index, ..parent }), entry.name)).collect()
}
