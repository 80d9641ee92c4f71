//! What a microVM's guest is made of: the programs that were set up for it (`tools`), its initramfs, its disks (`base`); and
//! layers that come out of one (`export`). Everything is a file that is there whole or not at all.
//! Starting QEMU and talking with a guest is the engine's.
#![forbid(unsafe_code)]

pub mod base;
mod error;
mod export;
pub mod initramfs;
mod tools;

pub use error::GuestError;
pub use export::unpack_layer;
pub use tools::Tools;
