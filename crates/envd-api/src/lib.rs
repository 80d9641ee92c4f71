//! Wire types and service stubs of envd, generated from `proto/` at build time.
//! Server traits always exist; the feature `client` adds clients and their transport.
//! Nothing here is written by hand: change the .proto files instead.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::pedantic,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/generated.rs"));
