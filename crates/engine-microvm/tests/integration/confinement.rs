//! The confinement of QEMU, seen from outside: code that breaks out of the guest would be this
//! process.
//!
//! Everything is read from `/proc`, as the kernel reports it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{assert_nothing_left, bench};
use engine::Sandbox;

/// Returns the `/proc` directory of a sandbox's QEMU, from the sandbox's record.
fn monitor(data: &Path, sandbox: &dyn Sandbox) -> PathBuf {
    let record = data.join(format!("microvm/sandboxes/{}.json", sandbox.id()));
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(record).expect("a record")).expect("JSON");
    Path::new("/proc").join(record["pid"].to_string())
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
}

/// Asserts that the process has an unprivileged user, no capabilities, and seccomp.
fn assert_unprivileged(status: &str) {
    for ids in ["Uid", "Gid"] {
        let all: Vec<u32> =
            field(status, ids).split_whitespace().map(|id| id.parse().expect("a number")).collect();
        assert!(all.len() == 4 && all.iter().all(|id| *id >= 1 << 28 && *id == all[0]), "{status}");
    }
    assert_eq!(field(status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(status, set), "0000000000000000", "{set}");
    }
    assert_eq!((field(status, "NoNewPrivs"), field(status, "Seccomp")), ("1", "2"));
}

/// Asserts that the files that the process sees are QEMU's and those of its guest.
fn assert_sees_only_its_files(process: &Path) {
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(process.join("root").join(dir)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let known = [
        "base", "bin", "boot", "dev", "lib", "lib64", "memory", "proc", "state", "template", "tmp", "usr",
        "vm",
    ];
    let seen = names("");
    assert!(seen.iter().all(|name| known.contains(&name.as_str())), "{seen:?}");
    for empty in ["proc", "dev", "tmp"] {
        assert_eq!(names(empty).len(), 0, "{empty}");
    }
    let own = names("vm");
    assert_eq!(own.len(), 2, "expected a disk and a file of devices: {own:?}");
    let mounts = fs::read_to_string(process.join("mountinfo")).expect("mounts");
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (target, options) = (fields[4], fields[5]);
        let is_own = target == "/vm";
        assert!(["/", "/base", "/memory", "/state", "/vm"].contains(&target), "{mount}");
        assert!(is_own || options.split(',').any(|option| option == "ro"), "{mount}");
        assert!(options.contains("nosuid") && options.contains("nodev"), "{mount}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_is_unprivileged_and_sees_only_its_files() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = bench().engine(data.path()).await;
    let (one, two) = (bench().start(&engine).await, bench().start(&engine).await);
    let process = monitor(data.path(), &*two);

    let status = fs::read_to_string(process.join("status")).expect("a status");
    assert_unprivileged(&status);
    let other = fs::read_to_string(monitor(data.path(), &*one).join("status")).expect("a status");
    assert_ne!(field(&status, "Uid"), field(&other, "Uid"), "two VMs run as the same user");

    let limits = fs::read_to_string(process.join("limits")).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max file size")).expect("a limit");
    let disk = fs::metadata(process.join("root/vm/disk.raw")).expect("a disk").len();
    assert_eq!(line.split_whitespace().nth(3), Some(disk.to_string().as_str()), "{line}");

    assert_sees_only_its_files(&process);

    let interfaces = fs::read_to_string(process.join("net/dev")).expect("interfaces");
    let names: Vec<&str> =
        interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(names, ["lo", "tap0"]);
    for sandbox in [one, two] {
        sandbox.kill().await.expect("ends");
    }
    engine.shutdown().await;
    drop(engine);
    assert_nothing_left(data.path());
}
