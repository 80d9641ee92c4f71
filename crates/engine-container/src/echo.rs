//! `ping` in sandboxes: ICMP echo sockets, as many as leave the kernel's table of them usable.

use engine_host::Group;
use net::allow_echo;
use sys::{EchoSocketLimit, Namespace};
use tracing::warn;

/// Maximum number of echo sockets of one sandbox; `ping` opens two. The kernel keeps those of the whole host in one table of 65,536
/// numbers, and searches it under one lock: a sandbox with all numbers would hold that lock for seconds at a time.
const MAX_ECHO_SOCKETS: u16 = 64;

/// Loads what counts echo sockets; `None` where the kernel cannot.
pub(crate) fn open_echo_limit() -> Option<EchoSocketLimit> {
    EchoSocketLimit::load(MAX_ECHO_SOCKETS)
        .inspect_err(|error| {
            warn!(%error, "ping does not work in sandboxes: the kernel cannot limit echo sockets (CONFIG_CGROUP_BPF)");
        })
        .ok()
}

/// Lets a sandbox ping its own addresses. A sandbox whose sockets cannot be limited goes without.
pub(crate) fn allow_limited_echo(limit: Option<&EchoSocketLimit>, group: &Group, network: &Namespace) {
    let Some(limit) = limit else { return };
    if let Err(error) = limit.attach(group.unified_fd()).and_then(|()| allow_echo(network)) {
        warn!(%error, cgroup = group.name(), "ping does not work in a sandbox: its echo sockets cannot be limited");
    }
}
