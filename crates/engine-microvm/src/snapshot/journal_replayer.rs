//! What becomes of a captured memory: its journal is replayed into its image, in the background and at once, and then it is the compressor's.
//! Who wants to start a machine from it meanwhile waits for that, or does it.
//! What a server that was killed has not replayed is replayed by the next one.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::snapshot::SnapshotFiles;
use crate::snapshot::image_compressor::ImageCompressor;
use crate::snapshot::memory;
use crate::worker_thread::WorkerThread;

/// A captured memory.
#[derive(Debug)]
pub(crate) struct ReplayJob {
    journal: Option<PathBuf>,
    image: PathBuf,
}

/// The thread that replays.
#[derive(Debug)]
pub(crate) struct JournalReplayer(WorkerThread<ReplayJob>);

impl JournalReplayer {
    /// Has what has lain for this long compressed.
    pub(crate) fn start(compress_after: Duration) -> io::Result<Self> {
        let compressor = ImageCompressor::start(compress_after)?;
        let work = move |job: ReplayJob, should_continue: &dyn Fn() -> bool| {
            let ReplayJob { journal, image } = job;
            let begun = Instant::now();
            match journal.map_or(Ok(()), |journal| memory::replay(&journal, &image, should_continue)) {
                Ok(()) => {
                    debug!(image = %image.display(), milliseconds = begun.elapsed().as_millis(), "replayed");
                    compressor.later(image);
                }
                // The next server's.
                Err(_) if !should_continue() => {}
                Err(error) => {
                    warn!(image = %image.display(), %error, "a job memory stays in its journal until it is wanted");
                }
            }
        };
        Ok(Self(WorkerThread::start("replayer", work)?))
    }

    /// Has a captured state's memory looked after, if it has one.
    pub(crate) fn add(&self, snapshot: &SnapshotFiles, image: PathBuf) {
        self.0.add(ReplayJob { journal: snapshot.journal.clone(), image });
    }
}
