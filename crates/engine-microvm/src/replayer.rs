//! What becomes of a captured memory: its journal is replayed into its image, in the background and at once, and then it is the compressor's.
//! Who wants to start a machine from it meanwhile waits for that, or does it.
//! What a server that was killed has not replayed is replayed by the next one.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::background::Background;
use crate::compressor::Compressor;
use crate::memory;
use crate::state::State;

/// A captured memory.
#[derive(Debug)]
pub(crate) struct Captured {
    journal: Option<PathBuf>,
    image: PathBuf,
}

/// The thread that replays.
#[derive(Debug)]
pub(crate) struct Replayer(Background<Captured>);

impl Replayer {
    /// Has what has lain for this long compressed.
    pub(crate) fn start(compress_after: Duration) -> io::Result<Self> {
        let compressor = Compressor::start(compress_after)?;
        let work = move |captured: Captured, goes_on: &dyn Fn() -> bool| {
            let Captured { journal, image } = captured;
            let begun = Instant::now();
            match journal.map_or(Ok(()), |journal| memory::replay(&journal, &image, goes_on)) {
                Ok(()) => {
                    debug!(image = %image.display(), milliseconds = begun.elapsed().as_millis(), "replayed");
                    compressor.later(image);
                }
                // The next server's.
                Err(_) if !goes_on() => {}
                Err(error) => {
                    warn!(image = %image.display(), %error, "a captured memory stays in its journal until it is wanted");
                }
            }
        };
        Ok(Self(Background::start("replayer", work)?))
    }

    /// Has a captured state's memory looked after, if it has one.
    pub(crate) fn add(&self, state: &State, image: PathBuf) {
        self.0.add(Captured { journal: state.journal.clone(), image });
    }
}
