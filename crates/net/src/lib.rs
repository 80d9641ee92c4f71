//! Networking of sandboxes through sockets alone: no bridge, no routes and no NAT on the host.
//!
//! A sandbox's network namespace has only `lo`, or the tap of its VM, and our listeners inside the
//! namespace are all that it can reach. Outgoing connections are redirected to those listeners,
//! where the `gateway` applies the egress policy and connects from the host; `dns` answers DNS
//! queries. Incoming connections (`dial`) are made from sockets that are created inside the
//! namespace.
#![forbid(unsafe_code)]

mod connection_log;
mod dial;
mod dns;
mod echo;
mod gateway;
mod hairpin;
mod hold;
mod intercept;
mod listeners;
mod loopback;
mod operator;
mod policies;
mod policy;
mod proxy;
mod redirect;
mod server_stream;
mod sniff;
mod tap;

pub use connection_log::{Connection, ConnectionLog, Outcome};
pub use dial::{CONTROL_ADDRESS, connect, dial, dial_as_control};
pub use dns::{DnsTotal, Resolvers};
pub use echo::allow_echo;
pub use gateway::{Gateway, GatewayConfig, is_host_address};
pub use hairpin::Hairpin;
pub use hold::{hold_tcp, release_tcp};
pub use intercept::{DialError, Dialled, Intercepted, Interceptor, Outbound};
pub use listeners::{Listeners, TcpListener, listen_in};
pub use operator::{Destination, OperatorPolicies, OperatorPolicy};
pub use policy::{Cidr, EgressPolicy, PolicyError, SandboxRules, is_never_public};
pub use proxy::{ProxyFailure, ProxyHosts, ProxyPasswords, SandboxProxy};
pub use server_stream::ServerStream;
pub use tap::{LinkAddresses, TapNetwork, create_tap_network};

use std::io;

use sys::{Namespace, in_network_namespace};

/// Port in each sandbox's namespace that TCP connections are redirected to.
pub const EGRESS_PORT: u16 = 15001;
/// Port in each sandbox's namespace that DNS datagrams are redirected to.
pub const DNS_PORT: u16 = 15053;

/// Configures a fresh network namespace for a container: brings `lo` up, makes every address local,
/// and redirects TCP and DNS to our listeners.
///
/// # Errors
/// The kernel has no nf_tables NAT, or the namespace is not fresh.
pub fn configure(namespace: &Namespace) -> io::Result<()> {
    in_network_namespace(namespace, || {
        loopback::bring_up()?;
        redirect::install(redirect::Hook::LocalOut)
    })
}
