//! Compresses the memory images of snapshots in the background, once they are old enough: most
//! pauses are short, long ones accumulate.
//!
//! One image at a time, with pauses that are as long as the work, and only blocks that no other
//! file shares. Does nothing where the file system cannot compress in place.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::worker_thread::WorkerThread;

/// The thread that compresses memory images.
#[derive(Debug)]
pub(crate) struct ImageCompressor {
    after: Duration,
    /// Dropped before the thread is joined, which ends its waits.
    _until: Sender<()>,
    worker: WorkerThread<CompressionJob>,
}

#[derive(Debug)]
struct CompressionJob {
    image: PathBuf,
    due: Instant,
}

impl ImageCompressor {
    /// Starts the thread; images are compressed at this age.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(crate) fn start(after: Duration) -> io::Result<Self> {
        let (until, ended) = mpsc::channel();
        // Returns true after the time, or false at once when the engine is closed.
        let wait = move |time: Duration| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let work = move |CompressionJob { image, due }: CompressionJob, _: &dyn Fn() -> bool| {
            if !wait(due.saturating_duration_since(Instant::now())) {
                return;
            }
            match compress(&image, &wait) {
                // The snapshot was removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(image = %image.display(), %error, "failed to compress a memory image");
                }
                Ok(()) => debug!(image = %image.display(), "compressed a memory image"),
            }
        };
        Ok(Self { after, _until: until, worker: WorkerThread::start("compressor", work)? })
    }

    /// Schedules the compression of an image that is no longer written to. Skipped if the image has
    /// been removed by then.
    pub(crate) fn schedule(&self, image: PathBuf) {
        self.worker.add(CompressionJob { image, due: Instant::now() + self.after });
    }
}

fn compress(image: &Path, wait: impl FnMut(Duration) -> bool) -> io::Result<()> {
    layers::compress(&File::options().read(true).write(true).open(image)?, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A compressor that waited for its jobs would hang here, and the test with it.
    #[test]
    fn closing_cancels_scheduled_compressions() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, "memory").unwrap();
        let before = std::fs::metadata(&image).unwrap();
        let compressor = ImageCompressor::start(Duration::from_secs(3600)).unwrap();
        compressor.schedule(image.clone());
        let (closed, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            drop(compressor);
            closed.send(()).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok(()), "closing waited for a job");
        assert_eq!(std::fs::read(&image).unwrap(), b"memory");
        assert_eq!(std::fs::metadata(&image).unwrap().modified().unwrap(), before.modified().unwrap());
    }
}
