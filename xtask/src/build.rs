//! Builds the server, the programs that run inside sandboxes, and what tests share: CRIU, QEMU, the base template's layer.
//! Programs for sandboxes are static (musl): a sandbox's image may have any C library, or none.
//! Results stay in `target/`, so each is made once a checkout.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Outcome};

/// Programs for sandboxes are built for this target.
pub(crate) const SANDBOX_TARGET: &str = "x86_64-unknown-linux-musl";

/// The first process of a container sandbox, and of a microVM's guest.
pub(crate) struct SandboxPrograms {
    pub(crate) envd: PathBuf,
    pub(crate) guest_init: PathBuf,
}

/// Builds the server with an optimising profile (`quick`, `release` or `dist`), with envd and guest-init beside it; returns its path.
pub(crate) fn release(profile: &str) -> Outcome<PathBuf> {
    let server = release_server(profile)?;
    programs_beside(&server, profile)?;
    Ok(server)
}

/// Builds the server alone with an optimising profile; returns its path.
pub(crate) fn release_server(profile: &str) -> Outcome<PathBuf> {
    run::cargo(["build", "--profile", profile, "--package", "cofferdam"]).run()?;
    Ok(run::target().join(profile).join("cofferdam"))
}

/// Builds envd and guest-init for a server of this profile and puts them beside it.
pub(crate) fn programs_beside(server: &Path, profile: &str) -> Outcome {
    // `quick` for them, too, so that what runs at compile time is compiled once.
    let SandboxPrograms { envd, guest_init } =
        sandbox_programs(if profile == "quick" { profile } else { "envd" })?;
    for (name, binary) in [("envd", envd), ("guest-init", guest_init)] {
        copy_if_newer(&binary, &server.with_file_name(name))?;
    }
    Ok(())
}

/// Copies a program, by rename: a running server may be reading the old one.
fn copy_if_newer(from: &Path, to: &Path) -> Outcome {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    if let (Ok(source), Ok(copy)) = (modified(from), modified(to))
        && source <= copy
    {
        return Ok(());
    }
    let new = to.with_extension("new");
    let copied = fs::copy(from, &new).and_then(|_| fs::rename(&new, to));
    copied.map_err(|error| format!("{}: {error}", to.display()))
}

/// Builds envd and guest-init with a cargo profile.
pub(crate) fn sandbox_programs(profile: &str) -> Outcome<SandboxPrograms> {
    let mut build = run::cargo(["build", "--package", "envd", "--package", "guest-init"]);
    build.args(["--target", SANDBOX_TARGET, "--profile", profile]).run()?;
    let dir = run::target().join(SANDBOX_TARGET).join(if profile == "dev" { "debug" } else { profile });
    Ok(SandboxPrograms { envd: dir.join("envd"), guest_init: dir.join("guest-init") })
}

/// Builds every test of the workspace, and the server with them.
pub(crate) fn tests() -> Outcome {
    run::cargo(["test", "--workspace", "--no-run", "--quiet"]).run()
}

/// Builds the server for tests; returns its path.
///
/// The small test is named for its effect on features: with a test among the targets, cargo unites the features of all packages and
/// their dev-dependencies as `tests` does. Otherwise everything above tokio would be compiled a second time.
pub(crate) fn server() -> Outcome<PathBuf> {
    run::cargo(["build", "--workspace", "--bin", "cofferdam", "--test", "delivery"]).run()?;
    Ok(run::target().join("debug/cofferdam"))
}

/// CRIU, installed by this server; returns its directory.
pub(crate) fn criu(server: &Path) -> Outcome<PathBuf> {
    let dir = run::target().join("criu");
    run::new(server).args(["setup", "criu", "--criu"]).arg(&dir).run()?;
    Ok(dir)
}

/// QEMU and a guest kernel, installed by this server; returns their directory.
pub(crate) fn microvm(server: &Path) -> Outcome<PathBuf> {
    let dir = run::target().join("microvm");
    run::new(server).args(["setup", "microvm", "--microvm"]).arg(&dir).run()?;
    Ok(dir)
}

/// The layer store with the base template in it, built by this server.
pub(crate) fn base_layer(server: &Path) -> Outcome<PathBuf> {
    let layers = run::target().join("layers");
    run::new(server).args(["template", "build-base", "--layers-dir"]).arg(&layers).run()?;
    Ok(layers)
}
