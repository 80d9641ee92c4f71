//! The interpreter with real languages. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;
mod languages;
mod protocol;
mod trouble;
