//! One file per kind of thing.
//! Each answers its routes; shapes are in `wire`, rules in `control`.
//! Request types stand beside the handler that reads them.

pub(crate) mod events;
pub(crate) mod keys;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod pool;
pub(crate) mod sandboxes;
pub(crate) mod server;
pub(crate) mod teams;
pub(crate) mod templates;
