//! Decompresses layers: gzip, zstd or plain tar, recognised by their first bytes, since media types can be wrong.
//! Decompressors use bounded memory; the budget limits the size of the content.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::OciError;

/// Maximum zstd window, as a power of two of bytes: 128 MiB, as `zstd --ultra` uses.
const MAX_WINDOW: u32 = 27;

/// Returns a reader of the uncompressed content.
pub(crate) fn decompressed<'a>(compressed: impl Read + 'a) -> Result<Box<dyn Read + 'a>, OciError> {
    let mut reader = BufReader::with_capacity(128 << 10, compressed);
    let fail = |error: io::Error| crate::tarball::unreadable(error);
    let start = reader.fill_buf().map_err(fail)?;
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(reader))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(reader).map_err(fail)?;
            decoder.window_log_max(MAX_WINDOW).map_err(fail)?;
            Ok(Box::new(decoder))
        }
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Err(OciError::malformed("the layer", &"it is compressed neither with gzip nor with zstd"))
        }
        _ => Ok(Box::new(reader)),
    }
}
