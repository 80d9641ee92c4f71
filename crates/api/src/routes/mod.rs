//! Handlers of the routes, one module for each kind of resource. Each has a function `routes`.
//! Types of request bodies are beside their handlers, types of responses in `wire`.

pub(crate) mod events;
pub(crate) mod identity;
pub(crate) mod keys;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod pool;
pub(crate) mod prometheus;
pub(crate) mod sandboxes;
pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod ssh_keys;
pub(crate) mod system;
pub(crate) mod teams;
pub(crate) mod templates;
pub(crate) mod volume_content;
pub(crate) mod volumes;
