//! Boot options: what the guest agent must know before the control channel is open, as parameters
//! on the kernel's command line.
//!
//! They must not be secret: user code can read `/proc/cmdline`. What differs between sandboxes that
//! are restored from one snapshot is in [`GuestIdentity`](crate::GuestIdentity) instead.

use std::str::FromStr;

/// Options of a guest's boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOptions {
    /// Maximum number of processes and threads of user code.
    pub pids: u32,
    /// Size of `/dev/shm`, MiB.
    pub shm_mib: u32,
}

/// A kernel command line without a required parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's command line has no number {0}=; start the guest with BootOptions::to_cmdline")]
pub struct BootError(&'static str);

const PIDS: &str = "cofferdam.pids";
const SHM: &str = "cofferdam.shm_mib";

impl BootOptions {
    /// Returns the parameters for the kernel's command line.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        format!("{PIDS}={} {SHM}={}", self.pids, self.shm_mib)
    }

    /// Finds the parameters in a whole command line.
    ///
    /// # Errors
    /// A parameter is missing or not a number.
    pub fn parse(cmdline: &str) -> Result<Self, BootError> {
        Ok(Self { pids: number(cmdline, PIDS)?, shm_mib: number(cmdline, SHM)? })
    }
}

/// The last parameter of a name counts, as in the kernel.
fn number<T: FromStr>(cmdline: &str, name: &'static str) -> Result<T, BootError> {
    let mut words = cmdline.split_ascii_whitespace().rev();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).ok_or(BootError(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_among_other_parameters() {
        let options = BootOptions { pids: 200, shm_mib: 128 };
        let line = format!("quiet cofferdam.pids=1 {} panic=-1\n", options.to_cmdline());
        assert_eq!(BootOptions::parse(&line), Ok(options));
        assert_eq!(BootOptions::parse("cofferdam.pids=1"), Err(BootError(SHM)));
        assert_eq!(BootOptions::parse("cofferdam.pids=x cofferdam.shm_mib=1"), Err(BootError(PIDS)));
    }
}
