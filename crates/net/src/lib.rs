//! Socket-only networking: a sandbox's network namespace has only `lo`, and our listeners inside it are all it can reach.
//! Outgoing connections land on those listeners, the policy decides, and the server dials from the host.
//! Incoming ones are sockets made inside the namespace.

mod policy;

pub use policy::{Cidr, EgressPolicy, PolicyError};
