//! The control channel as the guest has it: a virtio-serial port that may lose and gain a host at any time.
//! What cannot be sent yet waits here, within a limit; when a host begins anew, what waited for the one before is dropped.
//! The port is watched for changes only (edge-triggered): while no host is there it would be ready all the time, for nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guest_api::{Decoded, Decoder, GuestMessage, HostRequest, MAX_FRAME, PORT_NAME, SYNC_MARK, encode};
use rustix::fs::OFlags;

use crate::error::InitError;

/// Most bytes that wait for a host.
const MAX_WAITING: usize = 2 * MAX_FRAME;

/// The port, what was read of a frame, and what waits to be sent.
#[derive(Debug)]
pub(crate) struct Channel {
    port: File,
    decoder: Decoder,
    waiting: Vec<u8>,
}

impl Channel {
    /// The device whose name is the control channel's.
    pub(crate) fn find() -> Option<PathBuf> {
        let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
        let named =
            |port: &Path| fs::read_to_string(port.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
        let port = ports.map(|port| port.path()).find(|port| named(port))?;
        let device = Path::new("/dev").join(port.file_name()?);
        device.exists().then_some(device)
    }

    pub(crate) fn open(device: &Path) -> Result<Self, InitError> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let port = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
        let port = port.map_err(InitError::kernel("open the control channel"))?;
        Ok(Self { port, decoder: Decoder::default(), waiting: Vec::new() })
    }

    /// Takes what the host has sent. Nonsense is passed over, up to where the host begins anew.
    pub(crate) fn read(&mut self) -> Vec<Decoded<HostRequest>> {
        let mut items = Vec::new();
        let mut buffer = [0; 4096];
        // No bytes: no host is there.
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

    /// Sends a message now or when that is possible.
    pub(crate) fn send(&mut self, message: &GuestMessage) {
        match encode(message) {
            Ok(frame) if self.waiting.len() + frame.len() <= MAX_WAITING => self.waiting.extend(frame),
            Ok(_) => log_error(&"nobody reads the control channel"),
            Err(error) => log_error(&error),
        }
        self.flush();
    }

    /// Begins anew, as the host does.
    pub(crate) fn synchronise(&mut self) {
        self.waiting = SYNC_MARK.to_vec();
        self.flush();
    }

    /// Sends what waits, as far as the host takes it.
    pub(crate) fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match self.port.write(&self.waiting) {
                Ok(count @ 1..) => drop(self.waiting.drain(..count)),
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
