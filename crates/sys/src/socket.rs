//! Socket options that rustix does not have.
//! `man 7 socket` (`SO_MARK`), `man 7 ip` (`IP_BIND_ADDRESS_NO_PORT`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::raw::syscall;

/// Sets the mark that nf_tables rules see on every packet of a socket (`SO_MARK`).
///
/// # Errors
/// The caller has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW` over the socket's network namespace.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, mark)
}

/// Leaves the choice of a local port to `connect` when a socket is bound to an address with port 0, so that ports are
/// unique per connection and not per address.
///
/// # Errors
/// The socket is not an IP socket.
pub fn set_bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set(socket: impl AsFd, level: i32, option: i32, value: u32) -> io::Result<()> {
    let descriptor = socket.as_fd().as_raw_fd() as usize;
    let address = std::ptr::from_ref(&value) as usize;
    let arguments = [descriptor, level as usize, option as usize, address, size_of::<u32>(), 0];
    // SAFETY: the kernel reads four bytes at the address of a local that outlives the call.
    unsafe { syscall(libc::SYS_setsockopt, arguments) }
        .map(drop)
        .map_err(|error| io::Error::from_raw_os_error(error.0))
}
