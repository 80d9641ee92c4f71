//! Carrying out what the host asks for, one thing after another.
//! User code goes on only after everything before that has succeeded.

use std::fs::File;

use guest_api::{Call, Outcome, Revive};
use rustix::time::{ClockId, Timespec, clock_settime};
use sys::Namespace;

use crate::agent::power_off;
use crate::error::GuestError;
use crate::{cgroup, devices};

/// What calls work on.
pub(crate) struct Sandbox {
    /// envd's host name.
    pub(crate) hostname: Namespace,
    /// The sandbox's own disk.
    pub(crate) private: File,
}

impl Sandbox {
    pub(crate) fn carry_out(&self, call: &Call) -> Outcome {
        let done = match call {
            Call::Revive(revive) => self.revive(revive),
            Call::Still {} => self.still(),
            Call::Go { realtime_ns } => set_clock(*realtime_ns).and_then(|()| cgroup::thaw()),
            Call::PowerOff {} => power_off(),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed { reason: error.to_string() },
        }
    }

    fn revive(&self, revive: &Revive) -> Result<(), GuestError> {
        sys::reseed(revive.seed.as_bytes()).map_err(GuestError::kernel("renew the kernel's randomness"))?;
        set_clock(revive.realtime_ns)?;
        sys::set_hostname_in(&self.hostname, &revive.hostname)
            .map_err(GuestError::kernel("set the host name"))?;
        revive.boot_id.as_deref().map_or(Ok(()), devices::set_boot_id)?;
        revive.pids.map_or(Ok(()), cgroup::limit)?;
        cgroup::thaw()
    }

    fn still(&self) -> Result<(), GuestError> {
        cgroup::freeze()?;
        // Of the disk below: the overlay itself is mounted `volatile` and writes nothing on demand.
        rustix::fs::syncfs(&self.private).map_err(|error| {
            let _ = cgroup::thaw();
            GuestError::kernel("write the sandbox's disk")(error)
        })
    }
}

fn set_clock(realtime_ns: u64) -> Result<(), GuestError> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: (realtime_ns / SECOND).cast_signed(),
        tv_nsec: (realtime_ns % SECOND).cast_signed(),
    };
    clock_settime(ClockId::Realtime, time).map_err(GuestError::kernel("set the clock"))
}
