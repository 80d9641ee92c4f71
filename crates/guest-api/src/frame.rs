//! Frames on the control channel: a length (`u32`, big-endian) and that many bytes of JSON.
//!
//! The channel is one stream that outlives its reader: a server may die in the middle of a frame,
//! and a guest may be restored on another host. [`SYNC_MARK`] is therefore a byte sequence that
//! never occurs in a frame; everything before it is void.

use std::collections::VecDeque;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum length of the JSON in a frame, bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// Sent first by a host that connects to a guest. The guest answers with the same bytes and, if it
/// is ready, with [`GuestMessage::Ready`](crate::GuestMessage::Ready). Everything before the mark
/// belongs to an earlier conversation. Lengths begin with a zero byte and JSON never contains byte
/// 255, so four of them in a row are never part of a frame.
pub const SYNC_MARK: [u8; 4] = [0xff; 4];

/// Errors of frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length exceeds [`MAX_FRAME`].
    #[error("a frame of {0} bytes exceeds the maximum of {MAX_FRAME}: synchronize and repeat the request")]
    TooLong(usize),
    /// The JSON is not the expected one.
    #[error("cannot decode a frame: {0}; host and guest must have the same version")]
    Json(#[from] serde_json::Error),
}

/// Encodes a message as a frame.
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

/// What a [`Decoder`] finds in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The other side starts a new conversation.
    Sync,
    /// A message.
    Message(T),
}

/// Decodes messages from a stream of bytes. Buffers one frame at most.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: VecDeque<u8>,
    /// Number of bytes at the end of the input that may be the start of a mark.
    marks: usize,
    was_synced: bool,
    /// After an error everything is skipped until the next mark.
    is_lost: bool,
}

impl Decoder {
    /// Adds bytes that were read from the stream.
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

    /// Returns the next item, or `None` if it is incomplete. After an error everything is skipped
    /// until the other side sends a mark.
    ///
    /// # Errors
    /// The input is not a frame.
    pub fn pop<T: DeserializeOwned>(&mut self) -> Result<Option<Decoded<T>>, FrameError> {
        if std::mem::take(&mut self.was_synced) {
            return Ok(Some(Decoded::Sync));
        }
        let message = self.next_message();
        if message.is_err() {
            self.buffer.clear();
            self.is_lost = true;
        }
        Ok(message?.map(Decoded::Message))
    }

    fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        // Bytes that may belong to a mark are not decoded yet: a frame never ends with them.
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
    fn a_mark_voids_what_came_before() {
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
    fn frames_after_an_error_are_skipped() {
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
        fn frames_may_arrive_in_pieces(messages in proptest::collection::vec(".{0,300}", 1..6), size in 1usize..400) {
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
