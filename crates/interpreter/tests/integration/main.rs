//! Tests of the interpreter with real languages. They are one binary, so that it is linked once.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;
mod languages;
mod protocol;
mod trouble;
