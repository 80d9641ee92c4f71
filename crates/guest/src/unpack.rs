//! A layer out of a guest: what user code changed of its template, as the guest's agent tells it.
//! The guest is hostile; what it can do at most is to have written a smaller or another layer than it should.
//! The agent's end is `layers::write_layer`, asked for through the relay.

use std::io::Read;
use std::path::Path;

use layers::{StreamLimits, read_layer};

use crate::GuestError;

const MIB: u64 = 1 << 20;
/// A file system of this kind has room for a file in 16 KiB of disk; names of the same file cost less.
const BYTES_PER_ENTRY: u64 = 16 << 10;

/// Makes the directory `target`, which must not exist, of what the relay answers to `export`: the same as `layers::export_upper`
/// makes of an upper that is at hand. `disk_mib` is the size of the guest's own disk; no layer from it is much larger. Blocks;
/// a time limit is the stream's business.
///
/// # Errors
/// The stream is cut short, no layer, or too large, or there is no room; nothing is left of it then.
pub fn unpack_layer(stream: impl Read, target: &Path, disk_mib: u32) -> Result<(), GuestError> {
    // Twice, as holes in files count.
    let bytes = 2 * u64::from(disk_mib) * MIB;
    Ok(read_layer(stream, target, StreamLimits { bytes, entries: bytes / BYTES_PER_ENTRY })?)
}
