//! What the host of a microVM and the agent in its guest agree on: the control channel, the relay, addresses, boot options.
//! Both sides are compiled from this, but the host never believes a guest: whoever runs in there may have taken the agent over.
//! Plain data and its encoding; nothing here opens, waits or needs a runtime.
#![forbid(unsafe_code)]

mod boot;
mod frame;
mod message;
pub mod network;
pub mod relay;

pub use boot::{BootError, BootOptions};
pub use frame::{Decoded, Decoder, FrameError, MAX_FRAME, SYNC_MARK, encode};
pub use message::{Call, CallOutcome, GuestIdentity, GuestMessage, HostRequest, Seed, SeedTooShort};

/// Name of the virtio-serial port that the control channel is.
pub const PORT_NAME: &str = "cofferdam.agent";
