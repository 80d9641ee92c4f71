//! What a later server needs to find a running sandbox again, as a small JSON file.
//! A pid alone is not proof: the start time and the boot must match too.
//! Written before the sandbox is announced to anyone.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use engine::SandboxId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// A running sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// PID 1's pid on the host.
    pub(crate) pid: i32,
    /// Its start time in clock ticks since boot.
    pub(crate) start_time: u64,
    /// The boot it was started in.
    pub(crate) boot_id: String,
    /// First id of its range.
    pub(crate) uid_base: u32,
    /// Name of its control group.
    pub(crate) cgroup: String,
    /// Name of the agent's layer it runs from.
    pub(crate) agent: String,
    /// What its processes see as the id of their boot.
    pub(crate) inner_boot: String,
}

/// Where a sandbox is and what it was started with.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) uid_base: u32,
    pub(crate) cgroup: String,
    pub(crate) agent: String,
    pub(crate) inner_boot: String,
}

impl Record {
    /// Describes a process that has just been started.
    pub(crate) fn of(pid: i32, place: Place) -> io::Result<Self> {
        let Place { uid_base, cgroup, agent, inner_boot } = place;
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
            uid_base,
            cgroup,
            agent,
            inner_boot,
        })
    }

    /// Writes a sandbox's record into `folder`, whole or not at all.
    pub(crate) fn save(&self, folder: &Path, id: &SandboxId) -> io::Result<()> {
        let new = folder.join(format!("{id}.new"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, folder.join(format!("{id}.json")))
    }

    /// Waits until no capture of the sandbox is under way, also one of a server that has died, and keeps others away until it is
    /// dropped. Blocks.
    pub(crate) fn lock(folder: &Path, id: &SandboxId) -> io::Result<File> {
        let file = File::open(folder.join(format!("{id}.json")))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// Reads it back.
    pub(crate) fn load(folder: &Path, id: &SandboxId) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(folder.join(format!("{id}.json")))?)?)
    }

    /// Removes it; one that is not there is a success.
    pub(crate) fn remove(folder: &Path, id: &SandboxId) -> io::Result<()> {
        match fs::remove_file(folder.join(format!("{id}.json"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the process it describes is still the same and alive.
    pub(crate) fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|now| now == self.boot_id)
            && start_time(self.pid).is_ok_and(|t| t == self.start_time)
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Field 22 of `/proc/<pid>/stat`; the command name before it may hold spaces and brackets. A zombie is not alive.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace();
    let state = fields.next();
    match fields.nth(18).and_then(|field| field.parse().ok()) {
        Some(time) if state != Some("Z") => Ok(time),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_alive_only_with_its_very_process() {
        let dir = tempfile::tempdir().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let place =
            Place { uid_base: 1 << 28, cgroup: "s1".into(), agent: "a".into(), inner_boot: "b".into() };
        let record = Record::of(pid, place).unwrap();
        let id = SandboxId::generate();
        record.save(dir.path(), &id).unwrap();
        let mut again = Record::load(dir.path(), &id).unwrap();
        assert!(again.is_alive());
        again.start_time += 1;
        assert!(!again.is_alive());
        Record::remove(dir.path(), &id).unwrap();
        Record::remove(dir.path(), &id).unwrap();
        assert!(Record::load(dir.path(), &id).is_err());
    }
}
