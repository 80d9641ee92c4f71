//! Starts the writeback of a file's dirty pages while more of it is being written, so that the
//! final sync has less to wait for.
//!
//! A thread of its own does that, because starting writeback blocks while the disk is behind. It
//! promises nothing: a sync is still needed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use engine::Durability;

/// Size of the ranges whose writeback is started together, bytes.
const CHUNK_BYTES: u64 = 8 << 20;

/// Receives the ranges that have been written.
pub(super) struct Writeback(Sender<(u64, u64)>);

impl Writeback {
    /// Reports that bytes between these two positions were written.
    pub(super) fn written(&self, from: u64, to: u64) {
        let _ = self.0.send((from, to));
    }
}

/// Runs `work`, which writes to `file` and reports what it has written. Does nothing more for an
/// ephemeral file.
///
/// # Errors
/// Those of `work`.
pub(super) fn while_writing<T>(
    file: &File,
    durability: Durability,
    work: impl FnOnce(&Writeback) -> io::Result<T>,
) -> io::Result<T> {
    thread::scope(|scope| {
        let (send, written) = mpsc::channel();
        if durability == Durability::Durable {
            scope.spawn(move || start_writeback(file, &written));
        }
        // Dropped at the end of this closure, so that the thread ends before the scope joins it.
        let writeback = Writeback(send);
        work(&writeback)
    })
}

fn start_writeback(file: &File, written: &Receiver<(u64, u64)>) {
    let mut pending: Option<(u64, u64)> = None;
    for (from, to) in written {
        let (first, last) = pending.map_or((from, to), |(first, last)| (first.min(from), last.max(to)));
        pending = Some((first, last));
        if last - first >= CHUNK_BYTES {
            // An error only makes the final sync take longer.
            let _ = sys::start_writeback(file.as_fd(), first, last - first);
            pending = None;
        }
    }
}
