//! The guest's end of the control channel: a virtio-serial port whose host may disconnect and
//! reconnect at any time.
//!
//! Data that cannot be sent yet is buffered within a limit; when a host starts a new conversation,
//! data for the previous one is dropped. The port is watched edge-triggered: while no host is
//! connected it would be ready all the time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guest_api::{Decoded, Decoder, GuestMessage, HostRequest, MAX_FRAME, PORT_NAME, SYNC_MARK, encode};
use rustix::fs::OFlags;

use crate::error::InitError;

/// Maximum number of buffered bytes.
const MAX_BUFFERED: usize = 2 * MAX_FRAME;

/// The port, the decoder of requests, and buffered output.
#[derive(Debug)]
pub(crate) struct Channel {
    port: File,
    decoder: Decoder,
    buffered: Vec<u8>,
}

impl Channel {
    /// Returns the device of the control channel, once it exists.
    pub(crate) fn find() -> Option<PathBuf> {
        let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
        let named =
            |port: &Path| fs::read_to_string(port.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
        let port = ports.map(|port| port.path()).find(|port| named(port))?;
        let device = Path::new("/dev").join(port.file_name()?);
        device.exists().then_some(device)
    }

    /// Opens the device of the control channel.
    pub(crate) fn open(device: &Path) -> Result<Self, InitError> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let port = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
        let port = port.map_err(InitError::kernel("open the control channel"))?;
        Ok(Self { port, decoder: Decoder::default(), buffered: Vec::new() })
    }

    /// Reads what the host has sent. Input that cannot be decoded is skipped, up to where the host
    /// starts a new conversation.
    pub(crate) fn read(&mut self) -> Vec<Decoded<HostRequest>> {
        let mut items = Vec::new();
        let mut buffer = [0; 4096];
        // Zero bytes: no host is connected.
        while let Ok(count @ 1..) = self.port.read(&mut buffer) {
            self.decoder.push(&buffer[..count]);
            loop {
                match self.decoder.pop() {
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => break,
                    Err(error) => log_error(&error),
                }
            }
        }
        items
    }

    /// Sends a message, or buffers it until it can be sent.
    pub(crate) fn send(&mut self, message: &GuestMessage) {
        match encode(message) {
            Ok(frame) if self.buffered.len() + frame.len() <= MAX_BUFFERED => self.buffered.extend(frame),
            Ok(_) => log_error(&"the host does not read; a message is dropped"),
            Err(error) => log_error(&error),
        }
        self.flush();
    }

    /// Drops buffered output and answers the mark of a new conversation.
    pub(crate) fn synchronise(&mut self) {
        self.buffered = SYNC_MARK.to_vec();
        self.flush();
    }

    /// Sends buffered output, as far as the host accepts it.
    pub(crate) fn flush(&mut self) {
        while !self.buffered.is_empty() {
            match self.port.write(&self.buffered) {
                Ok(count @ 1..) => drop(self.buffered.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

fn log_error(about: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "guest-init: control channel: {about}");
}
