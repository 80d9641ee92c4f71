//! The kernel's news of devices, so that whoever needs one waits for it and not for a while.
//! Begin to listen before what makes the device appear.
//! Every wait has a limit.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::error::InitError;

/// A device is there at once when its driver is loaded; this is for a machine that hardly runs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The group that the kernel itself speaks to.
const KERNEL_GROUP: u32 = 1;

/// Hears of every device that comes.
#[derive(Debug)]
pub(crate) struct UeventSocket(OwnedFd);

impl UeventSocket {
    pub(crate) fn listen() -> Result<Self, InitError> {
        let open = || -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
            Ok(socket)
        };
        open().map(Self).map_err(InitError::kernel("listen for devices"))
    }

    /// Looks whenever there is news, until `look` finds something.
    pub(crate) fn wait_for<T>(
        &self,
        missing: &'static str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, InitError> {
        let end = Instant::now() + TIMEOUT;
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
            // Read away, also where some were lost: what counts is what is found.
            while let Ok(_) | Err(Errno::NOBUFS | Errno::INTR) =
                recv(&self.0, &mut [0u8; 4096], RecvFlags::empty())
            {}
        }
    }
}
