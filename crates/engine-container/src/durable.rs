//! Getting a memory image onto the disk: its pages while CRIU still writes, everything for certain when it has ended.
//! Early writing changes no promise: only [`settle`] makes a file durable, and then there is little left for it to wait for.
//! Folders are flat; who else is to be told of them is the caller's.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::pipe::{PipeFlags, pipe_with};

/// What files with memory are called by CRIU; the others are small.
const PAGES: &str = "pages-";
/// Threads that put files on disk at once. Each wait for a file is one for the file system's journal, and those that wait together
/// wait once.
const SYNCERS: usize = 8;
/// Events are a name of CRIU's each, and few at a time.
const EVENTS: usize = 4096;

/// Has the kernel begin to write what is added to files of memory in a folder. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct EarlyWriting {
    /// Closed first, which ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl EarlyWriting {
    /// Begins.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&events, folder, inotify::WatchFlags::MODIFY)?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let folder = folder.to_owned();
        let work = move || {
            let _ = begin_writing(&folder, &events, &stopped);
        };
        let thread =
            thread::Builder::new().name("early-writing".into()).stack_size(256 * 1024).spawn(work)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for EarlyWriting {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until `stopped` is closed on the other side. A failure costs time only: what is not written now is written at the end.
fn begin_writing(folder: &Path, events: &OwnedFd, stopped: &OwnedFd) -> io::Result<()> {
    let mut files: HashMap<OsString, File> = HashMap::new();
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    loop {
        let mut ready = [PollFd::new(events, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        poll(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return Ok(());
        }
        let mut reader = inotify::Reader::new(events, &mut buffer);
        loop {
            let event = reader.next()?;
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(PAGES) {
                let name = OsString::from(name);
                if !files.contains_key(&name) {
                    files.insert(name.clone(), File::open(folder.join(&name))?);
                }
                start_writing(&files[&name])?;
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
    }
}

/// Has the kernel begin to write the whole file, without waiting for it.
fn start_writing(file: &File) -> io::Result<()> {
    let [fd, flags] = [file.as_raw_fd() as usize, libc::SYNC_FILE_RANGE_WRITE as usize];
    // SAFETY: takes numbers only; the descriptor is open.
    unsafe { sys::syscall(libc::SYS_sync_file_range, [fd, 0, 0, flags, 0, 0]) }?;
    Ok(())
}

/// Puts every file of a folder on disk, and the folder.
pub(crate) fn settle(folder: &Path) -> io::Result<()> {
    let paths = paths_in(folder)?;
    let files = paths.iter().map(File::open).collect::<io::Result<Vec<File>>>()?;
    let share = files.len().div_ceil(SYNCERS).max(1);
    thread::scope(|scope| {
        let sync = |files: &[File]| files.iter().try_for_each(File::sync_all);
        let syncers: Vec<_> = files.chunks(share).map(|files| scope.spawn(move || sync(files))).collect();
        syncers.into_iter().try_for_each(|syncer| {
            syncer.join().unwrap_or_else(|_| Err(io::Error::other("a file's sync was interrupted")))
        })
    })?;
    File::open(folder)?.sync_all()
}

/// Size of all files of a folder, bytes.
pub(crate) fn size_of(folder: &Path) -> io::Result<u64> {
    paths_in(folder)?.iter().map(|path| Ok(path.metadata()?.len())).sum()
}

fn paths_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_comes_meanwhile_is_all_there_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let early = EarlyWriting::of(dir.path()).unwrap();
        for name in ["pages-1.img", "pages-2.img", "core-1.img"] {
            let mut file = File::create(dir.path().join(name)).unwrap();
            (0..16).for_each(|_| file.write_all(&[7; 1 << 16]).unwrap());
        }
        drop(early);
        settle(dir.path()).unwrap();
        assert_eq!(size_of(dir.path()).unwrap(), 3 << 20);
    }

    #[test]
    fn it_ends_when_asked_also_where_the_folder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let early = EarlyWriting::of(dir.path()).unwrap();
        drop(dir);
        drop(early);
        assert!(EarlyWriting::of(Path::new("/nowhere")).is_err() && settle(Path::new("/nowhere")).is_err());
    }
}
