//! Layers and writable trees on real file systems. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;
mod compress;
mod crash;
mod full;
mod limits;
mod overlay;
mod trees;
