//! A host disk that fills up under an image.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;

use crate::common::{Disk, name};
use layers::{LayerError, Volumes, VolumesBackend};

fn fill(volumes: &Volumes, volume: &str) -> (u64, std::io::Error) {
    let path = volumes.path(&name(volume)).join("fill");
    let mut file = File::create(path).unwrap();
    let block = crate::common::noise();
    for mib in 0.. {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return (mib, error);
        }
    }
    unreachable!()
}

#[test]
fn a_full_host_disk_is_an_error_and_no_loss() {
    let disk = Disk::fresh("ext4", 700);
    let volumes = disk.open(VolumesBackend::Loop);
    let [safe, greedy, saved] = ["safe", "greedy", "saved"].map(name);
    volumes.create(&safe, Some(100)).unwrap();
    fs::write(volumes.path(&safe).join("file"), "kept").unwrap();
    volumes.create(&greedy, None).unwrap();
    let (written, error) = fill(&volumes, "greedy");
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
    // How much exactly depends on when the guard looks at the disk.
    assert!(written > 200, "only {written} MiB fit");
    let host = rustix::fs::statvfs(&disk.dir).unwrap();
    assert!(host.f_bavail * host.f_frsize > 64 << 20, "the host's disk is full");

    // Nobody else can write now, but what is there can be kept and given up.
    assert!(fs::write(volumes.path(&safe).join("new"), [1u8; 1 << 20]).is_err());
    volumes.copy(&safe, &saved, true, None).unwrap();
    let refused = volumes.copy(&saved, &name("more"), false, Some(100));
    assert!(matches!(refused, Err(LayerError::Full(_))), "{refused:?}");
    volumes.discard(&greedy).unwrap();
    drop(volumes);
    let volumes = disk.open(VolumesBackend::Auto);
    let mut left = volumes.list().unwrap();
    left.sort();
    assert_eq!(left, [safe.clone(), saved.clone()]);
    for volume in [&safe, &saved] {
        assert_eq!(fs::read_to_string(volumes.path(volume).join("file")).unwrap(), "kept");
    }
}
