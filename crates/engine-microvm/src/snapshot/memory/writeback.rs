//! Sending to the disk what has been written of a file while there is more to write.
//! A thread of its own does that, as it waits for the disk when that is behind.
//! Promises nothing: there is only less to wait for in the end.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use engine::Durability;

/// How far apart the ends are of what is sent to the disk together, bytes.
const CHUNK_BYTES: u64 = 8 << 20;

/// Where to tell what has been written.
pub(super) struct Writeback(Sender<(u64, u64)>);

impl Writeback {
    /// Something between these two positions was written.
    pub(super) fn written(&self, from: u64, to: u64) {
        let _ = self.0.send((from, to));
    }
}

/// Does `work`, which writes to `file`; nothing is sent to the disk if it need not last.
pub(super) fn while_writing<T>(
    file: &File,
    durability: Durability,
    work: impl FnOnce(&Writeback) -> io::Result<T>,
) -> io::Result<T> {
    thread::scope(|scope| {
        let (send, written) = mpsc::channel();
        if durability == Durability::Durable {
            scope.spawn(move || start_writing(file, &written));
        }
        // Dropped with its end of the channel before the scope waits.
        let writeback = Writeback(send);
        work(&writeback)
    })
}

fn start_writing(file: &File, written: &Receiver<(u64, u64)>) {
    let mut pending: Option<(u64, u64)> = None;
    for (from, to) in written {
        let (first, last) = pending.map_or((from, to), |(first, last)| (first.min(from), last.max(to)));
        pending = Some((first, last));
        if last - first >= CHUNK_BYTES {
            // Where that cannot be done, the end takes longer.
            let _ = sys::start_writing(file.as_fd(), first, last - first);
            pending = None;
        }
    }
}
