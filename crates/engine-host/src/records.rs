//! [`Records`]: records of running sandboxes, one small JSON file for each. A later server finds the sandboxes by their records.
//! A record is either complete or does not exist. A lock on the file serves as the lock on its sandbox's captures. Each engine defines
//! the content of its records.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::SandboxId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::lock_holders::{end_within, kill, lock_holders};

/// How long to wait for a killed process to be gone.
const DEATH_TIMEOUT: Duration = Duration::from_secs(20);

/// The directory of an engine's records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Records in the directory `dir`, which exists.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Returns the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Writes or replaces a sandbox's record.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn save(&self, id: &SandboxId, record: &impl Serialize) -> io::Result<()> {
        fs_atomic::write_json(&self.path(id), record, fs_atomic::Options::DEFAULT)
    }

    /// Locks the sandbox for a capture; the lock is held until the returned file is dropped. Waits while another capture holds it,
    /// also one of a server process that has died. Blocks.
    ///
    /// # Errors
    /// There is no record.
    pub fn lock(&self, id: &SandboxId) -> io::Result<File> {
        let file = File::open(self.path(id))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// As [`Records::lock`], but returns `None` instead of waiting.
    ///
    /// # Errors
    /// There is no record.
    pub fn try_lock(&self, id: &SandboxId) -> io::Result<Option<File>> {
        let file = File::open(self.path(id))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Records::lock`], but kills the processes that still hold the lock after `timeout`. Also returns whether it did. Can be
    /// cancelled at any point.
    ///
    /// # Errors
    /// There is no record, or a killed process does not die (`TimedOut`).
    pub async fn lock_within(&self, id: &SandboxId, timeout: Duration) -> io::Result<(File, bool)> {
        let deadline = Instant::now() + timeout;
        let mut was_killed = false;
        loop {
            if let Some(lock) = self.try_lock(id)? {
                return Ok((lock, was_killed));
            }
            let path = self.path(id);
            let held_by = tokio::task::spawn_blocking(move || lock_holders(&path)).await;
            let held_by = held_by.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))??;
            if held_by.is_empty() {
                // The holder is ending: its descriptors are closed already, its locks go in a moment.
                let (records, id) = (self.clone(), id.clone());
                let lock = tokio::task::spawn_blocking(move || records.lock(&id)).await;
                return Ok((lock.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))??, was_killed));
            }
            if end_within(&held_by, deadline.saturating_duration_since(Instant::now())).await? {
                continue;
            }
            kill(&held_by)?;
            was_killed = true;
            if !end_within(&held_by, DEATH_TIMEOUT).await? {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the process that captures the sandbox does not die",
                ));
            }
        }
    }

    /// Kills the processes that capture a sandbox which is about to be removed. Blocks.
    ///
    /// # Errors
    /// There is no record, or a process cannot be killed.
    pub fn kill_captures(&self, id: &SandboxId) -> io::Result<()> {
        match self.try_lock(id)? {
            Some(_lock) => Ok(()),
            None => kill(&lock_holders(&self.path(id))?),
        }
    }

    /// Returns the sandboxes that have a record.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<SandboxId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| id.parse().ok());
            found.extend(id);
        }
        Ok(found)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// There is no record, or it is damaged.
    pub fn load<T: DeserializeOwned>(&self, id: &SandboxId) -> io::Result<T> {
        Ok(serde_json::from_slice(&fs::read(self.path(id))?)?)
    }

    /// Removes a record. Succeeds if there is none.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn remove(&self, id: &SandboxId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_record_is_saved_loaded_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        let id = SandboxId::generate();
        records.save(&id, &7).unwrap();
        assert_eq!(records.load::<i32>(&id).unwrap(), 7);
        drop(records.lock(&id).unwrap());
        records.remove(&id).unwrap();
        records.remove(&id).unwrap();
        assert!(records.load::<i32>(&id).is_err());
    }

    /// Starts a process that inherits the lock, as a memory dump does, and waits until it runs.
    fn start_heir(lock: File, program: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", program]).stdin(lock).stdout(Stdio::piped());
        let mut heir = command.spawn().unwrap();
        heir.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        heir
    }

    #[tokio::test]
    async fn a_process_that_holds_a_lock_too_long_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        let id = SandboxId::generate();
        records.save(&id, &7).unwrap();
        let mut heir = start_heir(records.lock(&id).unwrap(), "echo; exec sleep 1000");
        // Has the record open without a lock on it, so it must not be killed.
        let mut bystander = start_heir(File::open(records.path(&id)).unwrap(), "echo; exec sleep 1000");
        assert!(records.try_lock(&id).unwrap().is_none());
        let (lock, was_killed) = records.lock_within(&id, Duration::from_millis(20)).await.unwrap();
        assert!(was_killed);
        assert_eq!(heir.wait().unwrap().signal(), Some(9));
        assert!(records.try_lock(&id).unwrap().is_none(), "the lock is held by this process now");
        drop(lock);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_is_released_in_time_kills_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        let id = SandboxId::generate();
        records.save(&id, &7).unwrap();
        let mut heir = start_heir(records.lock(&id).unwrap(), "echo; exec sleep 0.2");
        let (_lock, was_killed) = records.lock_within(&id, Duration::from_secs(60)).await.unwrap();
        assert!(!was_killed);
        assert!(heir.wait().unwrap().success());
    }
}
