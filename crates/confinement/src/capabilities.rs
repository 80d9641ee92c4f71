//! Giving up rights between fork and exec: everything here makes system calls only.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

/// Changes the calling process's user id and, if given, its group id, for good; drops its groups. It keeps its capabilities until
/// [`keep_capabilities`].
///
/// # Errors
/// The kernel refused.
pub fn become_user(uid: u32, gid: Option<u32>) -> io::Result<()> {
    // Otherwise the kernel takes the capabilities away with uid 0.
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    sys::set_user(uid, gid)
}

/// Reduces the calling process's capabilities to `keep`, for good, also across `execve`.
///
/// # Errors
/// The kernel refused.
pub fn keep_capabilities(keep: CapabilitySet) -> io::Result<()> {
    bound_capabilities(keep)?;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
    for capability in each(keep) {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(set_no_new_privs(true)?)
}

/// Limits the capabilities that the calling process gains with `execve` as root to `keep`.
///
/// # Errors
/// The kernel refused.
pub fn bound_capabilities(keep: CapabilitySet) -> io::Result<()> {
    for capability in each(!keep) {
        match remove_capability_from_bounding_set(capability) {
            // This kernel does not have it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn each(capabilities: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .filter_map(|bit| CapabilitySet::from_bits(1 << bit))
        .filter(move |one| capabilities.contains(*one))
}
