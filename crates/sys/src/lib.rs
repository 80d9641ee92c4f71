//! Linux system calls that rustix does not offer, behind safe functions where that is possible.
//! Used by the engines, `confinement`, `net`, `layers`, `sandbox-setup`, `guest-init` and the server program only; every `unsafe` block says why it is sound.
//! For x86-64 and aarch64.

#![allow(
    clippy::cast_possible_truncation,
    reason = "both targets have 64-bit words; error numbers are small"
)]

mod attach;
pub mod btrfs;
mod clone;
mod creds;
mod descriptor;
mod entropy;
mod extents;
mod heap;
mod locks;
mod loop_device;
mod memory;
mod mount;
mod namespace;
pub mod netlink;
mod raw;
mod socket;
mod socket_limit;
mod tap;
mod writeback;

pub use attach::{attach_and_open, attach_at, attach_mount, change_root, mount_new};
pub use clone::{ChildStack, Clone3, Spawned, spawn_child};
pub use creds::{limit_bounding_set, set_user, with_effective_user, with_filesystem_ids};
pub use descriptor::adopt_descriptor;
pub use entropy::reseed;
pub use extents::{Extent, extents};
pub use heap::{trim_heap, unused_heap};
pub use locks::{is_range_locked, lock_range};
pub use loop_device::LoopDevice;
pub use memory::{MAX_PIECES, read_memory_of};
pub use mount::{seal_mount, set_idmap, set_no_access_times};
pub use namespace::{
    Namespace, enter_new_namespaces, in_mount_namespace, in_network_namespace, set_hostname_in,
};
pub use raw::{Errno, syscall};
pub use socket::{set_bind_address_no_port, set_mark};
pub use socket_limit::EchoSocketLimit;
pub use tap::make_tap;
pub use writeback::start_writeback;
