//! Handles requests of the host, one after another. User code is resumed only after everything
//! before that has succeeded.

use std::cell::RefCell;
use std::fs::File;

use guest_api::{Call, CallOutcome, GuestIdentity};
use rustix::time::{ClockId, Timespec, clock_settime};
use sys::Namespace;

use crate::agent::power_off;
use crate::cgroup::SandboxCgroup;
use crate::devices::BootId;
use crate::error::InitError;

/// What requests work on. Everything is opened beforehand: the first steps of a clone are executed
/// by the emulator for the first time, which is slow.
pub(crate) struct CallHandler {
    /// `/dev/urandom`.
    pub(crate) randomness: File,
    /// UTS namespace of envd.
    pub(crate) hostname: Namespace,
    /// Host name that the host set last; user code may have changed it since.
    pub(crate) name: RefCell<String>,
    pub(crate) boot_id: BootId,
    pub(crate) cgroup: SandboxCgroup,
    /// The mount of the sandbox's own disk.
    pub(crate) private: File,
}

impl CallHandler {
    /// Handles a request and returns whether it succeeded.
    pub(crate) fn handle(&self, call: &Call) -> CallOutcome {
        let done = match call {
            Call::Personalize(identity) => self.personalize(identity),
            Call::Quiesce {} => self.quiesce(),
            Call::Resume { realtime_ns } => set_clock(*realtime_ns).and_then(|()| self.cgroup.thaw()),
            Call::PowerOff {} => power_off(),
        };
        match done {
            Ok(()) => CallOutcome::Done,
            Err(error) => CallOutcome::Failed { reason: error.to_string() },
        }
    }

    fn personalize(&self, identity: &GuestIdentity) -> Result<(), InitError> {
        sys::reseed(&self.randomness, identity.seed.as_bytes())
            .map_err(InitError::kernel("reseed the kernel's random number generator"))?;
        set_clock(identity.realtime_ns)?;
        self.set_hostname(&identity.hostname)?;
        identity.boot_id.as_deref().map_or(Ok(()), |id| self.boot_id.set(id))?;
        identity.pids.map_or(Ok(()), |pids| self.cgroup.limit(pids))?;
        self.cgroup.thaw()
    }

    fn set_hostname(&self, name: &str) -> Result<(), InitError> {
        if *self.name.borrow() == name {
            return Ok(());
        }
        sys::set_hostname_in(&self.hostname, name).map_err(InitError::kernel("set the host name"))?;
        self.name.replace(name.to_owned());
        Ok(())
    }

    fn quiesce(&self) -> Result<(), InitError> {
        self.cgroup.freeze()?;
        // Syncs the disk below the overlay: the overlay itself is mounted `volatile`, and syncing
        // it does nothing.
        rustix::fs::syncfs(&self.private).map_err(|error| {
            let _ = self.cgroup.thaw();
            InitError::kernel("sync the sandbox's disk")(error)
        })
    }
}

fn set_clock(realtime_ns: u64) -> Result<(), InitError> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: (realtime_ns / SECOND).cast_signed(),
        tv_nsec: (realtime_ns % SECOND).cast_signed(),
    };
    clock_settime(ClockId::Realtime, time).map_err(InitError::kernel("set the clock"))
}
