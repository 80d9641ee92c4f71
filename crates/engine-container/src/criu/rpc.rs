//! The protocol of a `criu swrk` process: one protobuf message in each packet of a socket.
//! Field numbers are CRIU's (`images/rpc.proto`); only the fields that are used are defined here.
//! Every packet has a reply. CRIU sends notifications in the middle of its work and waits for the replies.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};

/// Maximum size of a response, bytes. CRIU's responses are short, and it truncates error texts.
const MAX_RESPONSE: usize = 64 * 1024;

/// `CRIU_REQ_TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Check = 3,
    Notify = 6,
    Version = 10,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Options {
    /// A descriptor of *this* process, which CRIU opens through `/proc`, or -1 if the configuration file names the directory.
    #[prost(int32, required, tag = "1")]
    pub(super) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(super) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(super) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(super) tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(super) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(super) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(super) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(super) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub(super) root: Option<String>,
    /// Whether open files that were deleted but have another name are given a name for the capture.
    #[prost(bool, optional, tag = "18")]
    pub(super) link_remap: Option<bool>,
    /// 0: CRIU does not touch control groups.
    #[prost(int32, optional, tag = "34")]
    pub(super) manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub(super) external: Vec<String>,
    /// `CLONE_NEW*` bits of the namespaces whose content the engine makes itself.
    #[prost(uint32, optional, tag = "38")]
    pub(super) empty_ns: Option<u32>,
    #[prost(string, optional, tag = "44")]
    pub(super) freeze_cgroup: Option<String>,
    #[prost(bool, optional, tag = "46")]
    pub(super) tcp_skip_in_flight: Option<bool>,
    /// File with options that have no field here.
    #[prost(string, optional, tag = "51")]
    pub(super) config_file: Option<String>,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub(super) notify_success: Option<bool>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Restored {
    #[prost(int32, required, tag = "1")]
    pub(super) pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Notification {
    #[prost(string, optional, tag = "1")]
    pub(super) script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(super) pid: Option<i32>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub(super) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(super) success: bool,
    #[prost(message, optional, tag = "4")]
    pub(super) restore: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    pub(super) notify: Option<Notification>,
    #[prost(int32, optional, tag = "7")]
    pub(super) errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub(super) message: Option<String>,
}

/// Our end of the socket to CRIU.
#[derive(Debug)]
pub(super) struct Conversation(OwnedFd);

impl Conversation {
    /// Returns our end and the end that CRIU inherits. A receive fails with `WouldBlock` after `timeout`.
    pub(super) fn pair(timeout: Duration) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(timeout))?;
        Ok((Self(ours), theirs))
    }

    /// Sends a request, replies to the notifications that come before the response, and returns the response.
    pub(super) fn ask(
        &self,
        request: &Request,
        mut on_notify: impl FnMut(&str, i32) -> io::Result<()>,
    ) -> io::Result<Response> {
        self.send(request)?;
        let mut failure = None;
        loop {
            let response = self.receive()?;
            if response.kind != Kind::Notify as i32 {
                return failure.map_or(Ok(response), Err);
            }
            let notification = response.notify.unwrap_or_default();
            let result = on_notify(&notification.script.unwrap_or_default(), notification.pid.unwrap_or(0));
            let is_ok = result.is_ok();
            failure = failure.or(result.err());
            let reply = Request { kind: Kind::Notify as i32, options: None, notify_success: Some(is_ok) };
            self.send(&reply)?;
        }
    }

    fn send(&self, request: &Request) -> io::Result<()> {
        send(&self.0, &request.encode_to_vec(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Response> {
        let mut packet = vec![0u8; MAX_RESPONSE];
        let (len, _) = recv(&self.0, packet.as_mut_slice(), RecvFlags::empty())?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "CRIU ended without a response"));
        }
        Ok(Response::decode(&packet[..len])?)
    }
}
