//! [`MemoryKills`]: tells sandboxes which of their processes the kernel has killed because a memory limit was reached. The control group
//! only counts such kills; the kernel's log has the names. It is read as it is written, by one thread.
//! Process names are untrusted: they are the sandbox's.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use engine::MemoryKill;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::Errno;
use tokio::sync::watch;
use tracing::warn;

const LOG: &str = "/dev/kmsg";
/// Maximum size of a record of the kernel's log, bytes.
const MAX_RECORD: usize = 8192;

/// Kills in each control group, by its name.
type Groups = Arc<Mutex<HashMap<String, watch::Sender<MemoryKill>>>>;

/// The kills among the sandboxes of one server. Dropped, it stops reading.
#[derive(Debug)]
pub struct MemoryKills {
    groups: Groups,
    /// The thread ends when this end of the pipe is closed.
    _stop: Option<OwnedFd>,
}

impl MemoryKills {
    /// Begins to read the kernel's log. `instance` is the name of the server's control group. A log that cannot be read is reported, and no kill
    /// is seen.
    #[must_use]
    pub fn open(instance: &str) -> Self {
        let groups = Groups::default();
        let stop = follow(format!("/{instance}/"), groups.clone())
            .inspect_err(|error| {
                warn!(%error, "cannot read {LOG}: sandboxes are not told which process a memory limit has killed");
            })
            .ok();
        Self { groups, _stop: stop }
    }

    /// Returns a receiver of the kills in the control group `group` from now on.
    #[must_use]
    pub fn subscribe(&self, group: &str) -> watch::Receiver<MemoryKill> {
        let (sender, receiver) = watch::channel(MemoryKill::default());
        let mut groups = self.groups.lock();
        groups.retain(|_, sender| sender.receiver_count() > 0);
        groups.insert(group.to_owned(), sender);
        receiver
    }
}

/// Starts the thread that reads the log; returns what ends it.
fn follow(prefix: String, groups: Groups) -> io::Result<OwnedFd> {
    let log = open(LOG, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    seek(&log, SeekFrom::End(0))?;
    let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let read = move || {
        if let Err(error) = read_log(&File::from(log), &stopped, &prefix, &groups) {
            warn!(%error, "failed to read {LOG}: sandboxes are not told any more which process a memory limit has killed");
        }
    };
    thread::Builder::new().name("memory-kills".into()).spawn(read)?;
    Ok(stop)
}

fn read_log(log: &File, stopped: &OwnedFd, prefix: &str, groups: &Groups) -> io::Result<()> {
    let mut record = vec![0u8; MAX_RECORD];
    loop {
        let mut ends = [PollFd::new(log, PollFlags::IN), PollFd::new(stopped, PollFlags::empty())];
        match poll(&mut ends, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        if !ends[1].revents().is_empty() {
            return Ok(());
        }
        match rustix::io::read(log, &mut record[..]) {
            // Records were overwritten before they were read; the next read continues after them.
            Err(Errno::AGAIN | Errno::INTR | Errno::PIPE) => {}
            Err(error) => return Err(error.into()),
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some((group, process, pid)) = parse(&text, prefix)
                    && let Some(sender) = groups.lock().get(group)
                {
                    sender.send_modify(|kill| {
                        kill.count += 1;
                        (kill.process, kill.host_pid) = (process.to_owned(), pid);
                    });
                }
            }
        }
    }
}

/// Returns group, process name and pid from a record about a process that was killed in a group below `prefix`.
fn parse<'a>(record: &'a str, prefix: &str) -> Option<(&'a str, &'a str, u32)> {
    let (_, message) = record.split_once(';')?;
    // A process can write to the log in some containers, but not begin a record with the kernel's facility.
    let fields = message.lines().next()?.strip_prefix("oom-kill:")?;
    let (_, victim) = fields.split_once(",task_memcg=")?;
    // The group's name has no comma, the process's may have any character.
    let (group, rest) = victim.split_once(",task=")?;
    let (rest, _uid) = rest.rsplit_once(",uid=")?;
    let (process, pid) = rest.rsplit_once(",pid=")?;
    let group = group.strip_prefix(prefix)?.split('/').next()?;
    Some((group, process, pid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_record_is_parsed_whatever_the_name_of_the_process() {
        let record = |task: &str| {
            format!(
                "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                     oom_memcg=/cofferdam-1/s10000000,task_memcg=/cofferdam-1/s10000000,task={task},pid=42,uid=1001000\n \
                     SUBSYSTEM=x\n"
            )
        };
        for task in ["node", "a,pid=1,uid=2", ",task_memcg=/x", "", "a b;c"] {
            let text = record(task);
            assert_eq!(parse(&text, "/cofferdam-1/"), Some(("s10000000", task, 42)), "{task}");
        }
        assert_eq!(parse(&record("node"), "/cofferdam-2/"), None);
        assert_eq!(parse("6,1,2,-;Out of memory: Killed process 1 (x)\n", "/cofferdam-1/"), None);
    }
}
