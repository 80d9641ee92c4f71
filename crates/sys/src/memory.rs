//! Reading another process's memory, many pieces in one call. (`/proc/<pid>/mem` copies everything twice, page by page.)
//! Needs the same rights as `ptrace`.

use std::io;

/// Maximum number of pieces in one call (`IOV_MAX`).
pub const MAX_PIECES: usize = 1024;

/// Reads pieces of the memory of process `pid`, each given by its address and length in bytes, one after another into `buffer`.
///
/// # Errors
/// The process has ended, may not be read, or does not have all of that memory; `InvalidInput` for more than [`MAX_PIECES`] pieces or if
/// `buffer` is not exactly as long as they are.
pub fn read_memory_of(pid: i32, pieces: &[(u64, usize)], buffer: &mut [u8]) -> io::Result<()> {
    let length: usize = pieces.iter().map(|(_, length)| length).sum();
    if length != buffer.len() || pieces.len() > MAX_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let remote: Vec<libc::iovec> = pieces
        .iter()
        .map(|(address, length)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(*address as usize),
            iov_len: *length,
        })
        .collect();
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the kernel writes at most `buffer.len()` bytes into the buffer, to which this is the only reference; the other addresses
    // are the other process's and are not dereferenced here.
    let read =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    match usize::try_from(read) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(read) if read == length => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_one_after_another() {
        let memory: Vec<u8> = (0..=255).collect();
        let address = memory.as_ptr().addr() as u64;
        let mut buffer = [0; 6];
        let own = std::process::id().cast_signed();
        read_memory_of(own, &[(address + 100, 4), (address + 7, 2)], &mut buffer).unwrap();
        assert_eq!(buffer, [100, 101, 102, 103, 7, 8]);
        assert!(read_memory_of(own, &[(address, 7)], &mut buffer).is_err(), "more than there is room for");
        assert!(read_memory_of(own, &[(address, 5), (16, 1)], &mut buffer).is_err(), "nothing is there");
    }
}
