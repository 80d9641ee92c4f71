//! Parses the maps of sparse files: the old GNU form with its map in the header, and the three PAX forms.
//! Maps are checked: segments in order, inside the file, and together as long as the stored content. `unpack` writes the segments.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::extended::number;
use super::{BLOCK, TarReader, broken, refused};
use crate::OciError;

/// Maximum number of segments of a file.
const MAX_SEGMENTS: usize = 1 << 16;

/// A range of a file with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
    /// Length, bytes.
    pub(crate) length: u64,
}

/// The layout of a sparse file.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    /// The file's size with its holes.
    pub(super) size: u64,
    /// Its name, if the header's is a placeholder.
    pub(super) name: Option<Vec<u8>>,
}

/// Parses the old GNU form. `more` returns the blocks that follow the header.
pub(super) fn gnu(
    header: &Header,
    mut more: impl FnMut() -> Result<[u8; BLOCK], OciError>,
) -> Result<Layout, OciError> {
    let header = header.as_gnu().ok_or_else(|| broken("a sparse file has no GNU header"))?;
    let mut segments = Vec::new();
    add_gnu(&mut segments, &header.sparse)?;
    let mut goes_on = header.is_extended();
    while goes_on {
        let mut block = GnuExtSparseHeader::new();
        *block.as_mut_bytes() = more()?;
        add_gnu(&mut segments, block.sparse())?;
        goes_on = block.is_extended();
    }
    let size = header.real_size().map_err(|_| broken("a sparse file's length is no number"))?;
    Ok(Layout { segments, size, name: None })
}

fn add_gnu(segments: &mut Vec<Segment>, list: &[GnuSparseHeader]) -> Result<(), OciError> {
    for item in list.iter().filter(|item| !item.is_empty()) {
        let number = |field: std::io::Result<u64>| field.map_err(|_| broken("a sparse map holds no numbers"));
        push(segments, Segment { offset: number(item.offset())?, length: number(item.length())? })?;
    }
    Ok(())
}

fn push(segments: &mut Vec<Segment>, segment: Segment) -> Result<(), OciError> {
    if segments.len() == MAX_SEGMENTS {
        return Err(broken("a sparse file has more than 65,536 segments"));
    }
    segments.push(segment);
    Ok(())
}

/// The PAX records of a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    /// Version 1.0: the map is at the beginning of the content.
    is_in_content: bool,
    size: Option<u64>,
    name: Option<Vec<u8>>,
    /// Offset, length, offset, length…
    numbers: Vec<u64>,
}

impl PaxSparse {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), OciError> {
        match key {
            b"GNU.sparse.major" => self.is_in_content = number(value)? == 1,
            b"GNU.sparse.name" => self.name = Some(value.to_owned()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.size = Some(number(value)?),
            b"GNU.sparse.map" => {
                let numbers: Result<Vec<u64>, _> = value.split(|byte| *byte == b',').map(number).collect();
                self.numbers = numbers?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.numbers.push(number(value)?),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn layout<R: Read>(self, content: &mut TarReader<R>) -> Result<Option<Layout>, OciError> {
        let Some(size) = self.size else { return Ok(None) };
        let numbers = if self.is_in_content { leading_map(content)? } else { self.numbers };
        let mut segments = Vec::new();
        for pair in numbers.chunks(2) {
            let [offset, length] = *pair else { return Err(broken("a sparse map has an odd length")) };
            push(&mut segments, Segment { offset, length })?;
        }
        Ok(Some(Layout { segments, size, name: self.name }))
    }
}

/// Reads a map of version 1.0: a count and the numbers, one on each line, padded to a whole block.
fn leading_map<R: Read>(content: &mut TarReader<R>) -> Result<Vec<u64>, OciError> {
    let mut lines = Lines { content, block: [0; BLOCK], next: BLOCK };
    let count = lines.number()?;
    if count > MAX_SEGMENTS as u64 {
        return Err(broken("a sparse file has more than 65,536 segments"));
    }
    (0..count * 2).map(|_| lines.number()).collect()
}

struct Lines<'a, R> {
    content: &'a mut TarReader<R>,
    block: [u8; BLOCK],
    next: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, OciError> {
        let mut digits = Vec::new();
        loop {
            if self.next == BLOCK {
                self.content.read_exact(&mut self.block).map_err(super::unreadable)?;
                self.next = 0;
            }
            let byte = self.block[self.next];
            self.next += 1;
            match byte {
                b'\n' => return number(&digits),
                _ if digits.len() == 20 => return Err(broken("a sparse map holds no numbers")),
                _ => digits.push(byte),
            }
        }
    }
}

/// Checks a map; returns it without empty segments.
pub(super) fn checked(
    name: &[u8],
    segments: Vec<Segment>,
    size: u64,
    stored: u64,
) -> Result<Vec<Segment>, OciError> {
    let mut end = 0;
    let mut sum = 0u64;
    for segment in &segments {
        let next = segment.offset.checked_add(segment.length).filter(|next| *next <= size);
        let (true, Some(next)) = (segment.offset >= end, next) else {
            return Err(refused(name, "has a sparse map that does not fit its length"));
        };
        end = next;
        sum += segment.length;
    }
    if sum != stored {
        return Err(refused(name, "has a sparse map that does not fit its content"));
    }
    Ok(segments.into_iter().filter(|segment| segment.length > 0).collect())
}
