//! Unpacks a layer that a guest exports: what user code changed in the files of its template.
//!
//! The guest is untrusted: it can send a layer that differs from what user code wrote, but nothing
//! worse. The guest agent's side is `layers::write_layer`, requested through the relay.

use std::io::Read;
use std::path::Path;

use layers::{StreamLimits, read_layer};

use crate::GuestError;

const MIB: u64 = 1 << 20;
/// Disk space that ext4 needs for a file, bytes; further names of the same file need less.
const BYTES_PER_ENTRY: u64 = 16 << 10;

/// Unpacks the stream that the relay sends after `export` into the directory `target`, which must
/// not exist. The result is what `layers::export_upper` makes of an upper directory on the host.
/// `disk_mib` is the size of the guest's own disk, which limits the layer. Blocks; the stream
/// should have a time limit.
///
/// # Errors
/// The stream ends early, is not a layer or is too large, or there is no room on the disk. Nothing
/// is left over then.
pub fn unpack_layer(stream: impl Read, target: &Path, disk_mib: u32) -> Result<(), GuestError> {
    // Twice the disk, because holes in files count.
    let bytes = 2 * u64::from(disk_mib) * MIB;
    Ok(read_layer(stream, target, StreamLimits { bytes, entries: bytes / BYTES_PER_ENTRY })?)
}
