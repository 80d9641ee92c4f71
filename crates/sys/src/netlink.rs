//! [`Batch`]: a builder for netlink messages, and an exchange that waits for the kernel's acknowledgements.
//! Enough for links, routes and a few nf_tables rules; responses other than acknowledgements are not parsed.
//! Sockets belong to the network namespace of the calling thread.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const REQUEST_ACK: u16 = 0x1 | 0x4;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// Netlink messages that are sent as one datagram.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    start: usize,
    acknowledged: usize,
}

impl Batch {
    /// Starts a message with its family header; [`Batch::finish`] ends it.
    pub fn begin(&mut self, kind: u16, flags: u16, family_header: &[u8]) -> &mut Self {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(family_header);
        if flags & REQUEST_ACK == REQUEST_ACK {
            self.acknowledged += 1;
        }
        self
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&length16(value.len() + 4));
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute with a NUL-terminated string.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an attribute with a number in network byte order, as nf_tables expects.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that contains the attributes added by `fill`.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = length16(self.bytes.len() - at);
        self.bytes[at..at + 2].copy_from_slice(&length);
        self
    }

    /// Ends the message that was started last.
    pub fn finish(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).expect("messages are a few hundred bytes");
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sends the batch and waits until the kernel has acknowledged every message in it.
    ///
    /// # Errors
    /// The first error the kernel reports.
    pub fn exchange(&self, protocol: Option<Protocol>) -> io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        rustix::net::send(&socket, &self.bytes, SendFlags::empty())?;
        let mut missing = self.acknowledged;
        let mut buffer = [0u8; 8192];
        while missing > 0 {
            let (length, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
            missing = missing.saturating_sub(acknowledgements(&buffer[..length])?);
        }
        Ok(())
    }
}

/// Returns the number of acknowledgements in a datagram; fails with the first error that the kernel reports in it.
fn acknowledgements(mut datagram: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while datagram.len() >= HEADER + 4 {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        if u16::from_ne_bytes([datagram[4], datagram[5]]) == NLMSG_ERROR {
            let code = i32::from_ne_bytes([datagram[16], datagram[17], datagram[18], datagram[19]]);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            count += 1;
        }
        let next = length.next_multiple_of(4).max(HEADER).min(datagram.len());
        datagram = &datagram[next..];
    }
    Ok(count)
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("attributes are a few hundred bytes").to_ne_bytes()
}
