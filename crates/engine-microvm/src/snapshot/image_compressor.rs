//! SnapshotInfo memories are compressed in the background, once they have lain for a while: most of what is paused is back soon, the rest stays long
//! and is many. One at a time, half of the time, and only what a state shares with no other.
//! Where the disk cannot do that, nothing happens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::worker_thread::WorkerThread;

/// The thread that compresses.
#[derive(Debug)]
pub(crate) struct ImageCompressor {
    after: Duration,
    /// Gone before the thread is waited for, which wakes it.
    _until: Sender<()>,
    background: WorkerThread<CompressionJob>,
}

#[derive(Debug)]
struct CompressionJob {
    image: PathBuf,
    due: Instant,
}

impl ImageCompressor {
    /// Compresses what has lain for this long.
    pub(crate) fn start(after: Duration) -> io::Result<Self> {
        let (until, ended) = mpsc::channel();
        // True unless the engine was closed meanwhile.
        let wait = move |time: Duration| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let work = move |CompressionJob { image, due }: CompressionJob, _: &dyn Fn() -> bool| {
            if !wait(due.saturating_duration_since(Instant::now())) {
                return;
            }
            match compress(&image, &wait) {
                // Resumed or removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(image = %image.display(), %error, "a captured memory stays as large as it is");
                }
                Ok(()) => debug!(image = %image.display(), "compressed"),
            }
        };
        Ok(Self { after, _until: until, background: WorkerThread::start("compressor", work)? })
    }

    /// Has an image compressed that nobody writes to any more, if it is still there then.
    pub(crate) fn later(&self, image: PathBuf) {
        self.background.add(CompressionJob { image, due: Instant::now() + self.after });
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
        let compressor = ImageCompressor::start(Duration::from_secs(3600)).unwrap();
        compressor.later("/nowhere".into());
        drop(compressor);
    }
}
