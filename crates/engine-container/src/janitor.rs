//! Removes what ended sandboxes leave on disk, away from everybody's way.
//! A folder is first moved aside, which is instant and survives a crash, and then taken apart on a thread of its own.
//! What a crash left in the trash is removed at the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tracing::warn;

/// The remover.
#[derive(Debug)]
pub(crate) struct Janitor {
    trash: PathBuf,
    queue: Mutex<Option<mpsc::Sender<PathBuf>>>,
    thread: Option<JoinHandle<()>>,
}

impl Janitor {
    /// Starts with whatever is in `trash`.
    pub(crate) fn start(trash: PathBuf) -> io::Result<Self> {
        let (queue, todo) = mpsc::channel::<PathBuf>();
        for entry in fs::read_dir(&trash)? {
            let _ = queue.send(entry?.path());
        }
        let work = move || {
            while let Ok(path) = todo.recv() {
                if let Err(error) = fs::remove_dir_all(&path) {
                    warn!(path = %path.display(), %error, "trash could not be removed");
                }
            }
        };
        let thread = thread::Builder::new().name("janitor".into()).spawn(work)?;
        Ok(Self { trash, queue: Mutex::new(Some(queue)), thread: Some(thread) })
    }

    /// Moves a folder out of the way and has it removed. A folder that is not there is a success.
    pub(crate) fn discard(&self, folder: &Path) -> io::Result<()> {
        let name = format!("{}-{}", folder.file_name().unwrap_or_default().display(), ids::random_hex::<4>());
        let aside = self.trash.join(name);
        match fs::rename(folder, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            answer => answer?,
        }
        if let Some(queue) = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref() {
            let _ = queue.send(aside);
        }
        Ok(())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        *self.queue.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
