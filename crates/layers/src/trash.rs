//! A trash directory: directories are moved into it, which is instant and survives a crash, and removed from it by a thread in the
//! background.
//! The directory trees are untrusted: any depth, any number of entries. Use of memory, stack and descriptors does not depend on them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, renameat, seek, unlinkat};
use rustix::io::Errno;
use tracing::warn;

use walk::{for_each_entry, open_dir};

/// Number of directory entries that are read before they are removed.
const BATCH: usize = 4096;
/// Interval of further attempts after a failed removal.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// A trash directory and the thread that empties it.
#[derive(Debug)]
pub struct Trash {
    trash: PathBuf,
    queue: Mutex<Option<mpsc::Sender<PathBuf>>>,
    thread: Option<JoinHandle<()>>,
}

impl Trash {
    /// Starts the thread, which first removes what is in the directory `trash` already.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn start(trash: PathBuf) -> io::Result<Self> {
        let (queue, todo) = mpsc::channel::<PathBuf>();
        for entry in fs::read_dir(&trash)? {
            let _ = queue.send(entry?.path());
        }
        let work = move || {
            // A process that is still writing to a directory can keep it from being removed.
            let mut failed = Vec::new();
            loop {
                match todo.recv_timeout(RETRY_INTERVAL) {
                    Ok(path) => failed.extend(remove(path)),
                    Err(RecvTimeoutError::Timeout) => {
                        failed = failed.into_iter().filter_map(remove).collect();
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = thread::Builder::new().name("trash".into()).spawn(work)?;
        Ok(Self { trash, queue: Mutex::new(Some(queue)), thread: Some(thread) })
    }

    /// Moves a directory to the trash; it is removed in the background. Succeeds if there is no such directory.
    ///
    /// # Errors
    /// The directory cannot be moved.
    pub fn discard(&self, dir: &Path) -> io::Result<()> {
        let name = format!("{}-{}", dir.file_name().unwrap_or_default().display(), ids::random_hex::<4>());
        let aside = self.trash.join(name);
        match fs::rename(dir, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            answer => answer?,
        }
        if let Some(queue) = self.queue.lock().as_ref() {
            let _ = queue.send(aside);
        }
        Ok(())
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        *self.queue.get_mut() = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Removes a directory tree; returns its path if that fails.
fn remove(path: PathBuf) -> Option<PathBuf> {
    match remove_tree(&path) {
        Ok(()) => None,
        // Another server that shares the directory has removed it.
        Err(_) if fs::symlink_metadata(&path).is_err() => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "failed to remove a directory from the trash; will try again");
            Some(path)
        }
    }
}

/// Removes a tree without recursion: subdirectories of a directory are moved up to the top, so that the tree is never walked deeper
/// than one level. Every directory is moved once, and two are open at a time.
///
/// # Errors
/// The tree does not exist or cannot be written.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open_dir(CWD, path)?;
    let mut moved = 0u64;
    // Moved directories get names that untrusted code cannot have guessed.
    let prefix = ids::random_hex::<8>();
    empty(&top, |name, is_dir| {
        if !is_dir {
            return unlinkat(&top, name, AtFlags::empty());
        }
        let dir = open_dir(&top, name)?;
        empty(&dir, |inner, is_dir| {
            if !is_dir {
                return unlinkat(&dir, inner, AtFlags::empty());
            }
            if unlinkat(&dir, inner, AtFlags::REMOVEDIR).is_ok() {
                return Ok(());
            }
            moved += 1;
            renameat(&dir, inner, &top, format!("{prefix}-{moved}"))
        })?;
        unlinkat(&top, name, AtFlags::REMOVEDIR)
    })?;
    drop(top);
    fs::remove_dir(path)
}

/// Calls `act` with the name and whether it is a directory for every entry, until none is left; `act` must remove the entry.
fn empty(dir: &OwnedFd, mut act: impl FnMut(&CString, bool) -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        seek(dir, rustix::fs::SeekFrom::Start(0))?;
        let mut batch = Vec::new();
        for_each_entry(dir, |name, kind| {
            batch.push((name, kind == FileType::Directory));
            Result::<_, Errno>::Ok(batch.len() < BATCH)
        })?;
        if batch.is_empty() {
            return Ok(());
        }
        batch.iter().try_for_each(|(name, is_dir)| act(name, *is_dir))?;
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    use super::*;

    #[test]
    fn a_tree_of_any_depth_and_width_goes() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut deepest = open_dir(CWD, &tree).unwrap();
        for level in 0..100_000 {
            mkdirat(&deepest, "d", Mode::from_raw_mode(0o700)).unwrap();
            if level % 1000 == 0 {
                mkdirat(&deepest, "side", Mode::from_raw_mode(0)).unwrap();
                openat(&deepest, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0)).unwrap();
                rustix::fs::symlinkat("/etc", &deepest, "link").unwrap();
            }
            deepest = open_dir(&deepest, "d").unwrap();
        }
        for number in 0..2 * BATCH {
            openat(&deepest, number.to_string(), OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600))
                .unwrap();
        }
        drop(deepest);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && Path::new("/etc/passwd").exists());
    }

    #[test]
    fn leftovers_are_removed_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("left/a/b")).unwrap();
        drop(Trash::start(dir.path().to_owned()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
