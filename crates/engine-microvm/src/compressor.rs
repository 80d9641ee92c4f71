//! Captured memories are compressed in the background, once they have lain for a while: most of what is paused is back soon, the rest stays long
//! and is many. One at a time, half of the time, and only what a state shares with no other.
//! Where the disk cannot do that, nothing happens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// The thread that compresses, and what it is to do.
#[derive(Debug)]
pub(crate) struct Compressor {
    after: Duration,
    /// Both none only while it is dropped.
    work: Option<(Sender<Work>, Sender<()>)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Work {
    image: PathBuf,
    due: Instant,
}

impl Compressor {
    /// Compresses what has lain for this long.
    pub(crate) fn start(after: Duration) -> io::Result<Self> {
        let (send, queue) = mpsc::channel();
        let (until, ended) = mpsc::channel();
        let thread =
            thread::Builder::new().name("compressor".into()).spawn(move || work_off(&queue, &ended))?;
        Ok(Self { after, work: Some((send, until)), thread: Some(thread) })
    }

    /// Has an image compressed that nobody writes to any more, if it is still there then.
    pub(crate) fn later(&self, image: PathBuf) {
        if let Some((queue, _)) = &self.work {
            let _ = queue.send(Work { image, due: Instant::now() + self.after });
        }
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work_off(queue: &Receiver<Work>, ended: &Receiver<()>) {
    // True unless the engine was closed meanwhile.
    let wait = |time: Duration| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    while let Ok(Work { image, due }) = queue.recv() {
        if !wait(due.saturating_duration_since(Instant::now())) {
            return;
        }
        match compress(&image, wait) {
            // Resumed or removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                warn!(image = %image.display(), %error, "a captured memory stays as large as it is");
            }
            Ok(()) => debug!(image = %image.display(), "compressed"),
        }
    }
}

fn compress(image: &Path, wait: impl FnMut(Duration) -> bool) -> io::Result<()> {
    layers::compress(&File::options().read(true).write(true).open(image)?, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_what_is_not_due() {
        let compressor = Compressor::start(Duration::from_secs(3600)).unwrap();
        compressor.later("/nowhere".into());
        drop(compressor);
    }
}
