//! Tap interfaces: a virtual Ethernet interface whose other end is a descriptor, for the network device of a VM.
//! It exists as long as a process has the descriptor open. See `Documentation/networking/tuntap.rst`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::raw::syscall;

const SET_INTERFACE: usize = 0x4004_54ca;
const TAP: i16 = 0x0002;
const NO_PACKET_INFORMATION: i16 = 0x1000;
/// Frames have the virtio header for offloads, so the guest does not compute checksums.
const VIRTIO_HEADER: i16 = 0x4000;

/// The kernel's `struct ifreq`, as this call uses it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    unused: [u8; 22],
}

/// Creates a tap interface `name` in the calling thread's network namespace and returns its descriptor.
///
/// # Errors
/// The kernel has no TUN driver, or the name is taken or longer than 15 bytes.
pub fn make_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request =
        Request { name: [0; 16], flags: TAP | NO_PACKET_INFORMATION | VIRTIO_HEADER, unused: [0; 22] };
    let room = request.name.get_mut(..name.len()).filter(|room| room.len() < 16);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    let device: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let address = std::ptr::from_mut(&mut request) as usize;
    // SAFETY: the request is a local variable of the size that the kernel reads and writes.
    unsafe { syscall(libc::SYS_ioctl, [device.as_raw_fd() as usize, SET_INTERFACE, address, 0, 0, 0]) }
        .map_err(|error| io::Error::from_raw_os_error(error.0))?;
    Ok(device.into())
}
