//! What a later server needs to find running sandboxes again: a small JSON file for each.
//! Whole or not there at all, and a lock for whoever changes what the record speaks of.
//! What is in a record is the engine's own business.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use engine::SandboxId;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The folder of an engine's records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Records in `folder`, which exists.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Writes a sandbox's record.
    ///
    /// # Errors
    /// The folder cannot be written to.
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
    /// The folder cannot be written to.
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
}
