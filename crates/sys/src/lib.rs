//! Linux system calls that rustix does not offer, each behind the smallest safe signature that holds.
//! Used by the engines and `net` only; every `unsafe` block says why it is sound.
//! x86-64 and aarch64.

#![allow(
    clippy::cast_possible_truncation,
    reason = "both targets have 64-bit words; error numbers are small"
)]

mod clone;
mod creds;
mod idmap;
mod namespace;
mod raw;

pub use clone::{ChildStack, Clone3, Spawned, spawn_child};
pub use creds::{with_effective_user, with_filesystem_ids};
pub use idmap::set_idmap;
pub use namespace::{Namespace, in_network_namespace};
pub use raw::{Errno, syscall};
