//! Descriptors that the process was started with, which are known by number alone.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::raw::syscall;

/// Returns a descriptor of our own for what the descriptor with this number refers to. The number stays open.
///
/// # Errors
/// There is no such descriptor, or the limit of open files is reached.
pub fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    let number = usize::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes numbers only.
    let new = unsafe { syscall(libc::SYS_fcntl, [number, libc::F_DUPFD_CLOEXEC as usize, 0, 0, 0, 0]) }
        .map_err(|error| io::Error::from_raw_os_error(error.0))?;
    // SAFETY: the descriptor is new, so nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_adopted_descriptor_outlives_its_number() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut adopted = std::fs::File::from(adopt_descriptor(reader.as_raw_fd()).unwrap());
        drop(reader);
        writer.write_all(b"same").unwrap();
        drop(writer);
        let mut text = String::new();
        adopted.read_to_string(&mut text).unwrap();
        assert_eq!(text, "same");
        assert_eq!(adopt_descriptor(9999).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(adopt_descriptor(-1).is_err());
    }
}
