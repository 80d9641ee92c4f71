//! Images from real and misbehaving registries and from archives. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod answers;
mod archives;
mod common;
mod differential;
mod registry;
mod templates;
