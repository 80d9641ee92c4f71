//! Carrying out what the host asks for, one thing after another.
//! User code goes on only after everything before that has succeeded.

use std::cell::RefCell;
use std::fs::File;

use guest_api::{Call, Outcome, Revive};
use rustix::time::{ClockId, Timespec, clock_settime};
use sys::Namespace;

use crate::agent::power_off;
use crate::cgroup::Group;
use crate::devices::BootId;
use crate::error::GuestError;

/// What calls work on. All of it is open: what a clone does first, an emulator sees for the first time and is slow at.
pub(crate) struct Sandbox {
    /// Of the kernel.
    pub(crate) randomness: File,
    /// envd's host name.
    pub(crate) hostname: Namespace,
    /// What the host wanted it to be; user code may have decided otherwise.
    pub(crate) name: RefCell<String>,
    pub(crate) boot_id: BootId,
    pub(crate) group: Group,
    /// The sandbox's own disk.
    pub(crate) private: File,
}

impl Sandbox {
    pub(crate) fn carry_out(&self, call: &Call) -> Outcome {
        let done = match call {
            Call::Revive(revive) => self.revive(revive),
            Call::Still {} => self.still(),
            Call::Go { realtime_ns } => set_clock(*realtime_ns).and_then(|()| self.group.thaw()),
            Call::PowerOff {} => power_off(),
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed { reason: error.to_string() },
        }
    }

    fn revive(&self, revive: &Revive) -> Result<(), GuestError> {
        sys::reseed(&self.randomness, revive.seed.as_bytes())
            .map_err(GuestError::kernel("renew the kernel's randomness"))?;
        set_clock(revive.realtime_ns)?;
        self.rename(&revive.hostname)?;
        revive.boot_id.as_deref().map_or(Ok(()), |id| self.boot_id.set(id))?;
        revive.pids.map_or(Ok(()), |pids| self.group.limit(pids))?;
        self.group.thaw()
    }

    fn rename(&self, name: &str) -> Result<(), GuestError> {
        if *self.name.borrow() == name {
            return Ok(());
        }
        sys::set_hostname_in(&self.hostname, name).map_err(GuestError::kernel("set the host name"))?;
        self.name.replace(name.to_owned());
        Ok(())
    }

    fn still(&self) -> Result<(), GuestError> {
        self.group.freeze()?;
        // Of the disk below: the overlay itself is mounted `volatile` and writes nothing on demand.
        rustix::fs::syncfs(&self.private).map_err(|error| {
            let _ = self.group.thaw();
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
