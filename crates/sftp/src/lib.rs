//! An SFTP server, version 3 (draft-ietf-secsh-filexfer-02, OpenSSH's PROTOCOL), with the rights of its process: `envd sftp` runs it inside
//! sandboxes, so the kernel decides what a user may do. One request after the other, without threads.
//! What a client may hold is limited: [`MAX_HANDLES`] open files, one packet in memory.
#![forbid(unsafe_code)]

mod attributes;
mod handles;
mod packet;
mod requests;

use std::io::{self, Read, Write};

use handles::Handles;
use packet::{MAX_PACKET, Reader, Writer};

/// Maximum number of files and directories that are open at a time.
pub const MAX_HANDLES: usize = 256;
/// Maximum number of bytes in one response to a read, and in one write.
pub(crate) const MAX_DATA: usize = 256 * 1024;

/// Serves requests until the input ends.
///
/// # Errors
/// The streams break, or the client sends what is no packet.
pub fn serve(mut input: impl Read, output: impl Write) -> io::Result<()> {
    let mut output = io::BufWriter::with_capacity(64 * 1024, output);
    let mut handles = Handles::default();
    let mut packet = Vec::new();
    while next(&mut input, &mut packet)? {
        let response = requests::answer(&mut Reader::new(&packet), &mut handles);
        output.write_all(&Writer::finish(response))?;
        output.flush()?;
    }
    Ok(())
}

/// Reads a packet; returns false at the end of the input.
fn next(input: &mut impl Read, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_PACKET {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the packet is too long"));
    }
    packet.resize(length, 0);
    input.read_exact(packet)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
