//! Waits for devices by the kernel's uevents instead of polling.
//!
//! Open the socket before whatever makes the device appear. Every wait has a time limit.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::error::InitError;

/// Time limit for a device. It appears as soon as its driver is loaded; the limit is for a very
/// slow host.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(20);
/// The multicast group of uevents from the kernel itself.
const KERNEL_GROUP: u32 = 1;

/// A netlink socket that receives an event for every new device.
#[derive(Debug)]
pub(crate) struct UeventSocket(OwnedFd);

impl UeventSocket {
    /// Opens the socket.
    pub(crate) fn listen() -> Result<Self, InitError> {
        let open = || -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
            Ok(socket)
        };
        open().map(Self).map_err(InitError::kernel("listen for devices"))
    }

    /// Calls `look` now and after every event, until it returns something.
    ///
    /// # Errors
    /// It returns nothing in time; `missing` names what is missing.
    pub(crate) fn wait_for<T>(
        &self,
        missing: &'static str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, InitError> {
        let end = Instant::now() + DEVICE_TIMEOUT;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InitError::Missing(missing));
            }
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            let limit =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut fds, Some(&limit));
            // Drains the socket, even if events were lost: only what `look` finds counts.
            while let Ok(_) | Err(Errno::NOBUFS | Errno::INTR) =
                recv(&self.0, &mut [0u8; 4096], RecvFlags::empty())
            {}
        }
    }
}
