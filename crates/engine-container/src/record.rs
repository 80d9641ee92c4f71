//! What a later server needs to find a running sandbox again, as a small JSON file beside its private folder.
//! A pid alone is not proof: the start time and the boot must match too.
//! Written before the sandbox is announced to anyone.

use std::fs;
use std::io;
use std::path::Path;

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
}

const FILE: &str = "record.json";

impl Record {
    /// Describes a process that has just been started.
    pub(crate) fn of(pid: i32, uid_base: u32, cgroup: String) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()?, uid_base, cgroup })
    }

    /// Writes it into the sandbox's private folder, whole or not at all.
    pub(crate) fn save(&self, private: &Path) -> io::Result<()> {
        let new = private.join("record.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, private.join(FILE))
    }

    /// Reads it back.
    pub(crate) fn load(private: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(private.join(FILE))?)?)
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
        let record = Record::of(pid, 1 << 28, "s1".into()).unwrap();
        record.save(dir.path()).unwrap();
        let mut again = Record::load(dir.path()).unwrap();
        assert!(again.is_alive());
        again.start_time += 1;
        assert!(!again.is_alive());
    }
}
