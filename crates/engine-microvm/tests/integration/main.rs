//! The microVM engine on QEMU. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod behaviour;
mod clones;
mod common;
mod confinement;
mod fallbacks;
