//! The protocol between the host of a microVM and the guest agent: control channel, relay, network
//! addresses, boot options.
//!
//! Both sides are compiled from this crate, but the host never trusts a guest: user code may have
//! taken over the guest agent. Plain data and its encoding only; nothing here does I/O.
#![forbid(unsafe_code)]

mod boot;
mod frame;
mod message;
pub mod network;
pub mod relay;

pub use boot::{BootError, BootOptions};
pub use frame::{Decoded, Decoder, FrameError, MAX_FRAME, SYNC_MARK, encode};
pub use message::{Call, CallOutcome, GuestIdentity, GuestMessage, HostRequest, Seed, SeedTooShort};

/// Name of the virtio-serial port of the control channel.
pub const PORT_NAME: &str = "cofferdam.agent";
