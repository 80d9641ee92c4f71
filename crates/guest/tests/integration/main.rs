//! Guests and what they boot from. One binary, so that it is linked once; each file is a module of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod boot;
mod common;
mod disk_images;
