//! Brings a fresh Debian machine to where a task can run: Debian packages and Rust targets.
//! What is there already costs a few milliseconds to see.
//! Needs root, as the server does.

use std::fs;

use crate::run::{self, Outcome};

/// Programs behind building templates and running sandboxes.
const RUNNING: &[&str] =
    &["mmdebstrap", "debian-archive-keyring", "ca-certificates", "btrfs-progs", "e2fsprogs"];
/// What tests use besides.
const TESTING: &[&str] = &[
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "iproute2",
    "nftables",
    "python3-venv",
    "git",
    "curl",
    "util-linux",
    "xfsprogs",
    "attr",
    "cpio",
    "acl",
    "apache2-utils",
    "openssl",
    "skopeo",
    "umoci",
];

/// For `quickstart`, `build` and `bench`.
pub(crate) fn for_running() -> Outcome {
    packages(RUNNING)?;
    rust_targets(&["x86_64-unknown-linux-musl"])
}

/// For tests.
pub(crate) fn for_testing() -> Outcome {
    packages(RUNNING)?;
    packages(TESTING)?;
    postgresql()?;
    registry()?;
    rust_targets(&["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl", "aarch64-unknown-linux-gnu"])?;
    if !run::cargo(["nextest", "--version"]).succeeds() {
        run::cargo(["install", "--locked", "cargo-nextest"]).run()?;
    }
    Ok(())
}

/// Its programs only. Where it is not installed yet, its package would start a server on the host's port; tests have their own.
fn postgresql() -> Outcome {
    const PACKAGE: &str = "postgresql";
    const NO_SERVER: &str = "/etc/postgresql-common/createcluster.d/cofferdam.conf";
    if !is_missing(PACKAGE) {
        return Ok(());
    }
    let prepare = fs::create_dir_all("/etc/postgresql-common/createcluster.d")
        .and_then(|()| fs::write(NO_SERVER, "create_main_cluster = false\n"));
    prepare.map_err(|error| format!("{NO_SERVER}: {error}"))?;
    let installed = packages(&[PACKAGE]);
    let _ = fs::remove_file(NO_SERVER);
    installed
}

/// The program only: tests have their own servers, and its package would start one on the host's port 5000, now and at each boot.
fn registry() -> Outcome {
    const PACKAGE: &str = "docker-registry";
    const MASK: &str = "/etc/systemd/system/docker-registry.service";
    if !is_missing(PACKAGE) {
        return Ok(());
    }
    if fs::symlink_metadata(MASK).is_err() {
        let dir = fs::create_dir_all("/etc/systemd/system");
        let mask = dir.and_then(|()| std::os::unix::fs::symlink("/dev/null", MASK));
        mask.map_err(|error| format!("{MASK}: {error}"))?;
    }
    packages(&[PACKAGE])
}

fn is_missing(package: &str) -> bool {
    let status = run::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]).output_quiet();
    status.as_deref() != Some("installed")
}

fn packages(wanted: &[&str]) -> Outcome {
    let missing: Vec<&&str> = wanted.iter().filter(|package| is_missing(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    run::new("apt-get").args(["update", "--quiet"]).run()?;
    let mut install = run::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(missing);
    install.env("DEBIAN_FRONTEND", "noninteractive").run()
}

fn rust_targets(wanted: &[&str]) -> Outcome {
    let installed = run::new("rustup").args(["target", "list", "--installed"]).output()?;
    for target in wanted.iter().filter(|target| !installed.lines().any(|line| line == **target)) {
        run::new("rustup").args(["target", "add", target]).run()?;
    }
    Ok(())
}
