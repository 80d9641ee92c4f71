//! Installs what a task needs on a fresh Debian machine: Debian packages, Rust targets, cargo's tools.
//! To find that everything is installed takes some milliseconds.
//! Needs root, as the server does.

use std::fs;
use std::path::Path;

use crate::run::{self, Outcome};

/// Programs that build templates and run sandboxes.
const RUNNING: &[&str] =
    &["mmdebstrap", "debian-archive-keyring", "ca-certificates", "btrfs-progs", "e2fsprogs"];
/// Further programs that tests use.
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
    "knot-dnsutils",
    "skopeo",
    "umoci",
    "microsocks",
    "openssh-client",
];

/// Servers that tests run themselves: the package, and the service that it would start.
const SERVERS: &[(&str, &str)] = &[
    ("docker-registry", "docker-registry"),
    ("nginx-light", "nginx"),
    ("haproxy", "haproxy"),
    ("pebble", "pebble"),
    ("knot", "knot"),
];

/// Installs what `quickstart`, `build`, `template` and `bench` need.
pub(crate) fn for_running() -> Outcome {
    packages(RUNNING)?;
    rust_targets(&["x86_64-unknown-linux-musl"])
}

/// Installs what tests need.
pub(crate) fn for_testing() -> Outcome {
    packages(RUNNING)?;
    packages(TESTING)?;
    postgresql()?;
    without_service(SERVERS)?;
    rust_targets(&["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl", "aarch64-unknown-linux-gnu"])?;
    for tool in ["nextest", "machete"] {
        if !run::cargo([tool, "--version"]).succeeds() {
            run::cargo(["install", "--locked", &format!("cargo-{tool}")]).run()?;
        }
    }
    Ok(())
}

/// Installs PostgreSQL's programs only: at its first installation, the package would start a server on the host's port. Tests start their own.
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

/// Installs the programs of packages that would start a server on the host's ports, now and at each boot. Tests start their own.
fn without_service(wanted: &[(&str, &str)]) -> Outcome {
    let missing: Vec<_> = wanted.iter().filter(|(package, _)| is_missing(package)).collect();
    for (_, service) in &missing {
        let mask = Path::new("/etc/systemd/system").join(format!("{service}.service"));
        if fs::symlink_metadata(&mask).is_ok() {
            continue;
        }
        let dir = fs::create_dir_all("/etc/systemd/system");
        let masked = dir.and_then(|()| std::os::unix::fs::symlink("/dev/null", &mask));
        masked.map_err(|error| format!("{}: {error}", mask.display()))?;
    }
    let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    packages(&names)
}

fn is_missing(package: &str) -> bool {
    let status = run::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]).output_quiet();
    status.as_deref() != Some("installed")
}

pub(crate) fn packages(wanted: &[&str]) -> Outcome {
    let missing: Vec<&&str> = wanted.iter().filter(|package| is_missing(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    run::new("apt-get").args(["update", "--quiet"]).run()?;
    let mut install = run::new("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(missing);
    // Without systemd, services do not start in this runlevel.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").run()
}

fn rust_targets(wanted: &[&str]) -> Outcome {
    let installed = run::new("rustup").args(["target", "list", "--installed"]).output()?;
    for target in wanted.iter().filter(|target| !installed.lines().any(|line| line == **target)) {
        run::new("rustup").args(["target", "add", target]).run()?;
    }
    Ok(())
}
