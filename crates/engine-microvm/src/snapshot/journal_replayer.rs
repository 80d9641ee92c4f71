//! Replays the journals of snapshots into their memory images in the background, then schedules the
//! images for compression.
//!
//! A restore that needs the image earlier replays the journal itself or waits for the replay in
//! progress. Journals that a killed server has not replayed are replayed by the next one.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::snapshot::SnapshotFiles;
use crate::snapshot::image_compressor::ImageCompressor;
use crate::snapshot::memory;
use crate::worker_thread::WorkerThread;

/// The memory files of one snapshot.
#[derive(Debug)]
pub(crate) struct ReplayJob {
    journal: Option<PathBuf>,
    image: PathBuf,
}

/// The thread that replays journals.
#[derive(Debug)]
pub(crate) struct JournalReplayer(WorkerThread<ReplayJob>);

impl JournalReplayer {
    /// Starts the thread; images are compressed at the age `compress_after`.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub(crate) fn start(compress_after: Duration) -> io::Result<Self> {
        let compressor = ImageCompressor::start(compress_after)?;
        let work = move |job: ReplayJob, should_continue: &dyn Fn() -> bool| {
            let ReplayJob { journal, image } = job;
            let started = Instant::now();
            match journal.map_or(Ok(()), |journal| memory::replay(&journal, &image, should_continue)) {
                Ok(()) => {
                    debug!(image = %image.display(), milliseconds = started.elapsed().as_millis(), "replayed a journal into its memory image");
                    compressor.schedule(image);
                }
                // The next server replays it.
                Err(_) if !should_continue() => {}
                Err(error) => {
                    warn!(image = %image.display(), %error, "failed to replay a journal into its memory image; a restore will try again");
                }
            }
        };
        Ok(Self(WorkerThread::start("replayer", work)?))
    }

    /// Queues a snapshot for replay and compression; does nothing later if it has no memory or was
    /// removed.
    pub(crate) fn add(&self, snapshot: &SnapshotFiles, image: PathBuf) {
        self.0.add(ReplayJob { journal: snapshot.journal.clone(), image });
    }
}
