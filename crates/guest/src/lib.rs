//! What a microVM's guest is made of: the programs that were set up for it (`tools`), its initramfs, its disks (`base`); and
//! layers that come out of one (`export`). Everything is a file that is there whole or not at all.
//! Starting QEMU and talking with a guest is the engine's.
#![forbid(unsafe_code)]

pub mod disk_images;
mod error;
pub mod initramfs;
mod tools;
mod unpack;

pub use error::GuestError;
pub use tools::Tools;
pub use unpack::unpack_layer;
