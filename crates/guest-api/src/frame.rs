//! Frames on the control channel: a length (`u32`, big-endian) and as much JSON.
//! The channel is one stream that outlives whoever reads it: a server may die in the middle of a frame, a guest may be restored
//! beside another host. So there is a mark, [`SYNC_MARK`], that can be nowhere in a frame and makes void what came before it.

use std::collections::VecDeque;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of a frame without its length.
pub const MAX_FRAME: usize = 1 << 20;

/// Whoever connects to a guest sends this first; the guest answers with the same and, if it is ready, says so again. What came
/// before the mark belongs to an earlier conversation. Lengths begin with a zero byte and JSON has no byte 255, so four
/// of them in a row are never part of a frame.
pub const SYNC_MARK: [u8; 4] = [0xff; 4];

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length that cannot be.
    #[error("a frame of {0} bytes; the most are {MAX_FRAME}: synchronise and ask again")]
    TooLong(usize),
    /// Not the expected JSON.
    #[error("a frame is not understood: {0}; both sides must be of one version")]
    Json(#[from] serde_json::Error),
}

/// A frame, ready to be sent.
///
/// # Errors
/// The message is too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(number) if length <= MAX_FRAME => frame[..4].copy_from_slice(&number.to_be_bytes()),
        _ => return Err(FrameError::TooLong(length)),
    }
    Ok(frame)
}

/// What a [`Decoder`] has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The other side begins anew.
    Sync,
    /// A message.
    Message(T),
}

/// Makes messages of bytes, in whatever pieces they come. Holds a frame at most.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: VecDeque<u8>,
    /// Bytes of the mark that the last ones read may be.
    marks: usize,
    was_synced: bool,
    /// After an error nothing is understood until the next mark.
    is_lost: bool,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.marks = if *byte == SYNC_MARK[0] { self.marks + 1 } else { 0 };
            if self.marks == SYNC_MARK.len() {
                *self = Self { was_synced: true, ..Self::default() };
            } else if !self.is_lost {
                self.buffer.push_back(*byte);
            }
        }
    }

    /// The next item, if all of it is there. After an error everything is passed over until the other side synchronises.
    ///
    /// # Errors
    /// What came is no frame.
    pub fn pop<T: DeserializeOwned>(&mut self) -> Result<Option<Decoded<T>>, FrameError> {
        if std::mem::take(&mut self.was_synced) {
            return Ok(Some(Decoded::Sync));
        }
        let message = self.message();
        if message.is_err() {
            self.buffer.clear();
            self.is_lost = true;
        }
        Ok(message?.map(Decoded::Message))
    }

    fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        // What may become a mark is not looked at: a whole frame does not end like that.
        let certain = self.buffer.len().saturating_sub(self.marks);
        let bytes = &self.buffer.make_contiguous()[..certain];
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(frame)?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Vec<Decoded<String>> {
        std::iter::from_fn(|| decoder.pop().unwrap()).collect()
    }

    #[test]
    fn a_mark_ends_whatever_was_before() {
        let frame = encode(&"late").unwrap();
        for cut in 0..frame.len() {
            let mut decoder = Decoder::default();
            decoder.push(&frame[..cut]);
            decoder.push(&SYNC_MARK);
            decoder.push(&encode(&"new").unwrap());
            assert_eq!(
                all(&mut decoder),
                [Decoded::Sync, Decoded::Message("new".to_owned())],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_mark_is_found_in_pieces() {
        let frame = encode(&"x").unwrap();
        for cut in 0..frame.len() {
            let mut decoder = Decoder::default();
            decoder.push(&frame[..cut]);
            for byte in SYNC_MARK {
                assert_eq!(decoder.pop::<String>().unwrap(), None);
                decoder.push(&[byte]);
            }
            assert_eq!(all(&mut decoder), [Decoded::Sync]);
        }
    }

    #[test]
    fn nothing_is_believed_after_nonsense() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0x10, 0, 1]);
        assert!(matches!(decoder.pop::<String>(), Err(FrameError::TooLong(0x10_0001))));
        decoder.push(&encode(&"unheard").unwrap());
        assert_eq!(all(&mut decoder), []);
        decoder.push(&SYNC_MARK);
        decoder.push(&encode(&7).unwrap());
        assert_eq!(decoder.pop::<String>().unwrap(), Some(Decoded::Sync));
        assert!(matches!(decoder.pop::<String>(), Err(FrameError::Json(_))));
        let long = "x".repeat(MAX_FRAME);
        assert!(matches!(encode(&long), Err(FrameError::TooLong(_))));
        assert!(encode(&&long[2..]).is_ok());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(messages in proptest::collection::vec(".{0,300}", 1..6), size in 1usize..400) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
            prop_assert!(!stream.windows(4).any(|four| four == SYNC_MARK));
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                found.extend(all(&mut decoder));
            }
            let wanted: Vec<_> = messages.into_iter().map(Decoded::Message).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
