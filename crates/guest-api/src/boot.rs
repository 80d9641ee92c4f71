//! What the agent must know before it can be asked anything, as parameters on the kernel's command line.
//! Nothing secret may be among them: user code reads `/proc/cmdline`.
//! What changes from sandbox to sandbox of one captured state is not here but in [`GuestIdentity`](crate::GuestIdentity).

use std::str::FromStr;

/// Options of a guest's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOptions {
    /// Most processes and threads of user code.
    pub pids: u32,
    /// Size of `/dev/shm`, MiB.
    pub shm_mib: u32,
}

/// A command line without what is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's command line has no number {0}=; start the guest with BootOptions::to_cmdline")]
pub struct BootError(&'static str);

const PIDS: &str = "cofferdam.pids";
const SHM: &str = "cofferdam.shm_mib";

impl BootOptions {
    /// The parameters, to be put among others.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        format!("{PIDS}={} {SHM}={}", self.pids, self.shm_mib)
    }

    /// Finds them in a whole command line.
    ///
    /// # Errors
    /// One is missing or no number.
    pub fn parse(cmdline: &str) -> Result<Self, BootError> {
        Ok(Self { pids: number(cmdline, PIDS)?, shm_mib: number(cmdline, SHM)? })
    }
}

/// The last of a name counts, as for the kernel.
fn number<T: FromStr>(cmdline: &str, name: &'static str) -> Result<T, BootError> {
    let mut words = cmdline.split_ascii_whitespace().rev();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).ok_or(BootError(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_found_among_others() {
        let options = BootOptions { pids: 200, shm_mib: 128 };
        let line = format!("quiet cofferdam.pids=1 {} panic=-1\n", options.to_cmdline());
        assert_eq!(BootOptions::parse(&line), Ok(options));
        assert_eq!(BootOptions::parse("cofferdam.pids=1"), Err(BootError(SHM)));
        assert_eq!(BootOptions::parse("cofferdam.pids=x cofferdam.shm_mib=1"), Err(BootError(PIDS)));
    }
}
