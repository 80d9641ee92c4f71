//! Times of operations on writable trees, for every backend: `cargo bench --package bench --bench trees`. Prints medians.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure ends the measurement")]

use std::fs;
use std::time::{Duration, Instant};

use common::{Disk, name};
use layers::{Trees, TreesBackend};

// File systems to measure on are made as for the tests of `layers`.
#[path = "../../crates/layers/tests/integration/common/mod.rs"]
mod common;

fn median(count: usize, mut act: impl FnMut(usize)) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|round| {
            let start = Instant::now();
            act(round);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[count / 2]
}

fn measure(what: &str, trees: &Trees, copies: usize) {
    let numbered = |kind: &str, number: usize| name(&format!("{kind}-{number}"));
    let create = median(100, |n| trees.create(&numbered("new", n), Some(512)).unwrap());
    let rename = median(100, |n| trees.rename(&numbered("new", n), &numbered("used", n)).unwrap());
    let dirs = median(100, |n| {
        for dir in ["upper", "work"] {
            fs::create_dir(trees.path(&numbered("used", n)).join(dir)).unwrap();
        }
    });
    let small = median(copies, |n| {
        trees.copy(&numbered("used", n), &numbered("copy", n), true, None).unwrap();
    });
    let discard = median(copies, |n| trees.discard(&numbered("copy", n)).unwrap());

    let big = name("big");
    trees.create(&big, Some(2048)).unwrap();
    let noise = common::noise();
    for dir in 0..100 {
        let dir = trees.path(&big).join(format!("upper/{dir}"));
        fs::create_dir_all(&dir).unwrap();
        (0..100).for_each(|file| fs::write(dir.join(file.to_string()), &noise[..10 << 10]).unwrap());
    }
    let first = median(1, |_| trees.copy(&big, &name("big-first"), true, None).unwrap());
    let again = median(copies.min(10), |n| {
        fs::write(trees.path(&big).join("upper/0/0"), &noise).unwrap();
        trees.copy(&big, &numbered("big", n), true, None).unwrap();
    });
    let usage = median(10, |_| assert!(trees.usage(&big).unwrap().used > 0));
    let gone = median(copies.min(10), |n| trees.discard(&numbered("big", n)).unwrap());
    println!(
        "{what:8} create {create:?}, rename {rename:?}, two directories {dirs:?}, copy small {small:?}, discard {discard:?}; \
         10k files 100 MiB: first copy {first:?}, copy {again:?}, discard {gone:?}, usage {usage:?}"
    );
}

fn main() {
    let disk = Disk::host();
    measure("image", &disk.open(TreesBackend::Loop), 30);
    let disk = Disk::host();
    measure("copy", &disk.open(TreesBackend::Copy), 5);
    let disk = Disk::fresh("btrfs", 4096);
    measure("btrfs", &disk.open(TreesBackend::Btrfs), 30);
    let disk = Disk::fresh("xfs", 4096);
    measure("reflink", &disk.open(TreesBackend::Reflink), 5);
}
