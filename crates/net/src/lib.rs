//! Socket-only networking: a sandbox's network namespace has only `lo` (or the cable of a virtual machine), and our listeners
//! inside it are all it can reach.
//! Outgoing connections land on those listeners, the policy decides, and the server dials from the host.
//! Incoming ones are sockets made inside the namespace.
#![forbid(unsafe_code)]

mod dial;
mod dns;
mod gateway;
mod listeners;
mod loopback;
mod policy;
mod redirect;
mod sniff;
mod tap;

pub use dial::{CONTROL_ADDRESS, connect, dial, dial_as_control};
pub use dns::Resolvers;
pub use gateway::{Gateway, GatewayConfig, is_host_address};
pub use listeners::{Listeners, TcpListener, listen_in};
pub use policy::{Cidr, EgressPolicy, PolicyError, is_never_public};
pub use tap::{LinkAddresses, TapNetwork, create_tap_network};

use std::io;

use sys::{Namespace, in_network_namespace};

/// Port inside each sandbox's namespace where redirected TCP connections land.
pub const EGRESS_PORT: u16 = 15001;
/// Port inside each sandbox's namespace where redirected DNS datagrams land.
pub const DNS_PORT: u16 = 15053;

/// Turns a fresh network namespace into a sandbox's: `lo` up, every address local, TCP and DNS redirected to us.
///
/// # Errors
/// The kernel lacks nf_tables NAT, or the namespace is not fresh.
pub fn configure(namespace: &Namespace) -> io::Result<()> {
    in_network_namespace(namespace, || {
        loopback::bring_up()?;
        redirect::install(redirect::Hook::LocalOut)
    })
}
