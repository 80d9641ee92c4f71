//! Fields of packets: numbers in network byte order, strings with their length before them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::MAX_DATA;

/// Maximum length of a packet: a write with its fields.
pub(crate) const MAX_PACKET: usize = MAX_DATA + 1024;

/// The packet ends before a field does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncated;

/// Reads fields.
#[derive(Debug)]
pub(crate) struct Reader<'packet>(&'packet [u8]);

impl<'packet> Reader<'packet> {
    pub(crate) fn new(packet: &'packet [u8]) -> Self {
        Self(packet)
    }

    fn take(&mut self, length: usize) -> Result<&'packet [u8], Truncated> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Truncated> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Truncated> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Truncated)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Truncated> {
        self.take(8)?.try_into().map(u64::from_be_bytes).map_err(|_| Truncated)
    }

    pub(crate) fn string(&mut self) -> Result<&'packet [u8], Truncated> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A path; an empty one is the current directory.
    pub(crate) fn path(&mut self) -> Result<PathBuf, Truncated> {
        let bytes = self.string()?;
        Ok(PathBuf::from(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }
}

/// Writes a response: its length, type, request number, fields.
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn string(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }

    /// Returns the packet.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut packet = self.0;
        let length = u32::try_from(packet.len() - 4).unwrap_or(u32::MAX);
        packet[..4].copy_from_slice(&length.to_be_bytes());
        packet
    }
}
