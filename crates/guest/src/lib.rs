//! The files of a microVM's guest: QEMU and the guest kernel (`tools`), the initramfs, the disks
//! (`disk_images`); and layers that are exported from a guest (`unpack`). Every file is written
//! completely or not at all.
//!
//! Starting QEMU and communicating with a guest is up to the engine.
#![forbid(unsafe_code)]

pub mod disk_images;
mod error;
pub mod initramfs;
mod tools;
mod unpack;

pub use error::GuestError;
pub use tools::Tools;
pub use unpack::unpack_layer;
