//! Builds: the server, envd and guest-init beside it, and what tests share: the base template's layer, CRIU, QEMU.
//! What runs inside sandboxes is always for musl, whatever those have for a C library.
//! Both are kept under `target/`, so they are made once a checkout.

use std::fs;
use std::path::PathBuf;

use crate::run::{self, Outcome};

pub(crate) const ENVD_TARGET: &str = "x86_64-unknown-linux-musl";

/// Release build of the server with what runs in sandboxes beside it; returns the server's path.
pub(crate) fn release() -> Outcome<PathBuf> {
    crate::setup::for_running()?;
    run::cargo(["build", "--release", "--package", "cofferdam"]).run()?;
    let dir = run::target().join("release");
    for (name, binary) in [("envd", envd("envd")?), ("guest-init", guest_init("envd")?)] {
        // By rename: a running server may be reading the old one.
        let new = dir.join(format!("{name}.new"));
        fs::copy(&binary, &new)
            .and_then(|_| fs::rename(&new, dir.join(name)))
            .map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(dir.join("cofferdam"))
}

/// envd with a cargo profile; returns its path.
pub(crate) fn envd(profile: &str) -> Outcome<PathBuf> {
    inside("envd", profile)
}

/// The first process of a microVM's guest with a cargo profile; returns its path.
pub(crate) fn guest_init(profile: &str) -> Outcome<PathBuf> {
    inside("guest-init", profile)
}

/// What runs inside sandboxes, whatever those have for a C library.
fn inside(package: &str, profile: &str) -> Outcome<PathBuf> {
    run::cargo(["build", "--package", package, "--target", ENVD_TARGET, "--profile", profile]).run()?;
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(run::target().join(ENVD_TARGET).join(dir).join(package))
}

/// Development build of the server; returns its path.
pub(crate) fn server() -> Outcome<PathBuf> {
    run::cargo(["build", "--package", "cofferdam"]).run()?;
    Ok(run::target().join("debug/cofferdam"))
}

/// CRIU for tests.
pub(crate) fn criu() -> Outcome<PathBuf> {
    let dir = run::target().join("criu");
    run::new(server()?).args(["setup", "criu", "--criu"]).arg(&dir).run()?;
    Ok(dir)
}

/// QEMU and a guest kernel for tests.
pub(crate) fn microvm() -> Outcome<PathBuf> {
    let dir = run::target().join("microvm");
    run::new(server()?).args(["setup", "microvm", "--microvm"]).arg(&dir).run()?;
    Ok(dir)
}

/// The layer store with the base template in it.
pub(crate) fn base_layer() -> Outcome<PathBuf> {
    let layers = run::target().join("layers");
    run::new(server()?).args(["template", "build-base", "--layers-dir"]).arg(&layers).run()?;
    Ok(layers)
}
