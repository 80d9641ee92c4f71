//! What a later server needs to find running sandboxes again: a small JSON file for each.
//! Whole or not there at all, and a lock for whoever changes what the record speaks of.
//! What is in a record is the engine's own business.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::SandboxId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::holders::{end_within, holders, kill};

/// How long a killed process may take to be dead.
const MAX_DEATH: Duration = Duration::from_secs(20);

/// The directory of an engine's records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Records in `directory`, which exists.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Writes a sandbox's record.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn save(&self, id: &SandboxId, record: &impl Serialize) -> io::Result<()> {
        let new = self.0.join(format!("{id}.new"));
        fs::write(&new, serde_json::to_vec(record)?)?;
        fs::rename(new, self.path(id))
    }

    /// Waits until no capture of the sandbox is under way, also one of a server that has died, and keeps others away until it is
    /// dropped. Blocks.
    ///
    /// # Errors
    /// There is no record.
    pub fn lock(&self, id: &SandboxId) -> io::Result<File> {
        let file = File::open(self.path(id))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// As [`Records::lock`] without the wait: None while a capture is under way.
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

    /// As [`Records::lock`], but whoever holds it in another process for longer than `patience` is killed. Answers whether that
    /// was necessary, too. May be dropped at any point.
    ///
    /// # Errors
    /// There is no record, or who holds it does not die (`TimedOut`).
    pub async fn lock_within(&self, id: &SandboxId, patience: Duration) -> io::Result<(File, bool)> {
        let deadline = Instant::now() + patience;
        let mut was_ended = false;
        loop {
            if let Some(lock) = self.try_lock(id)? {
                return Ok((lock, was_ended));
            }
            let path = self.path(id);
            let held_by = tokio::task::spawn_blocking(move || holders(&path)).await;
            let held_by = held_by.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))??;
            if held_by.is_empty() {
                // About to let go: its descriptors are closed, its locks in a moment.
                let (records, id) = (self.clone(), id.clone());
                let lock = tokio::task::spawn_blocking(move || records.lock(&id)).await;
                return Ok((lock.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))??, was_ended));
            }
            if end_within(&held_by, deadline.saturating_duration_since(Instant::now())).await? {
                continue;
            }
            kill(&held_by)?;
            was_ended = true;
            if !end_within(&held_by, MAX_DEATH).await? {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "what captures the sandbox does not die",
                ));
            }
        }
    }

    /// Ends whoever captures a sandbox that nobody wants any more. Blocks.
    ///
    /// # Errors
    /// There is no record, or a process cannot be ended.
    pub fn end_captures(&self, id: &SandboxId) -> io::Result<()> {
        match self.try_lock(id)? {
            Some(_lock) => Ok(()),
            None => kill(&holders(&self.path(id))?),
        }
    }

    /// The sandboxes that have a record.
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
    /// There is none, or it is damaged.
    pub fn load<T: DeserializeOwned>(&self, id: &SandboxId) -> io::Result<T> {
        Ok(serde_json::from_slice(&fs::read(self.path(id))?)?)
    }

    /// Removes a record; one that is not there is a success.
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
    fn a_record_comes_back_and_goes() {
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

    /// A process that has inherited the lock, as a dump has; it says when it does.
    fn a_heir(lock: File, program: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", program]).stdin(lock).stdout(Stdio::piped());
        let mut heir = command.spawn().unwrap();
        heir.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        heir
    }

    #[tokio::test]
    async fn whoever_keeps_a_lock_too_long_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        let id = SandboxId::generate();
        records.save(&id, &7).unwrap();
        let mut heir = a_heir(records.lock(&id).unwrap(), "echo; exec sleep 1000");
        // It has the record open without a lock on it: that is no reason to end it.
        let mut bystander = a_heir(File::open(records.path(&id)).unwrap(), "echo; exec sleep 1000");
        assert!(records.try_lock(&id).unwrap().is_none());
        let (lock, was_ended) = records.lock_within(&id, Duration::from_millis(20)).await.unwrap();
        assert!(was_ended);
        assert_eq!(heir.wait().unwrap().signal(), Some(9));
        assert!(records.try_lock(&id).unwrap().is_none(), "it is ours now");
        drop(lock);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_is_let_go_of_in_time_ends_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        let id = SandboxId::generate();
        records.save(&id, &7).unwrap();
        let mut heir = a_heir(records.lock(&id).unwrap(), "echo; exec sleep 0.2");
        let (_lock, was_ended) = records.lock_within(&id, Duration::from_secs(60)).await.unwrap();
        assert!(!was_ended);
        assert!(heir.wait().unwrap().success());
    }
}
