//! Runs programs of the host on untrusted input: CRIU on hostile processes, `mkfs.ext4` on the files of templates. Such a program sees a
//! root directory that is made for it ([`Root`]) and an empty network, and has few capabilities ([`keep_capabilities`]).
//! [`confine`] does all of it for a command. What remains is listed in `docs/isolation.md`.

mod capabilities;
mod root;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{CapabilitySet, UnshareFlags};

pub use capabilities::{become_user, bound_capabilities, keep_capabilities};
pub use root::{Access, Entrance, Root};

/// Has `command` run in the root behind `entrance`, as the user and group `id`, with the capabilities `keep` only. Its program and
/// arguments are paths in that root.
pub fn confine(command: &mut Command, entrance: Entrance, id: u32, keep: CapabilitySet) {
    let enter = move || -> io::Result<()> {
        entrance.enter(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
        become_user(id, Some(id))?;
        keep_capabilities(keep)
    };
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no locks.
    unsafe { command.pre_exec(enter) };
}
