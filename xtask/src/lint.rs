//! Formatting, clippy, unused dependencies, other architectures, and builds that are repeated for no reason.
//! Warnings are errors here, and only here, so that work in progress stays quick.
//! aarch64 is checked, not built: there is nothing here to run it. Programs for sandboxes are checked with their own C library (musl).

use crate::run::{self, Outcome};

/// Environment of a bare shell: what a cargo process needs, and settings that a person or CI makes for all of them.
const SHELL: [&str; 7] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "CARGO_TARGET_DIR",
    "CARGO_INCREMENTAL",
];

/// Everything that needs no build of the workspace.
pub(crate) fn all() -> Outcome {
    crate::docs::check()?;
    run::cargo(["fmt", "--all", "--check"]).run()?;
    run::cargo(["machete"]).run()?;
    run::cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]).run()?;
    // Each `cargo check` unites the features of its packages, so each further one compiles their dependencies again.
    let mut sandbox = run::cargo(["check", "--quiet", "--target", "aarch64-unknown-linux-musl"]);
    sandbox.args(["--package", "envd", "--package", "guest-init", "--package", "interpreter"]).run()?;
    run::cargo(["check", "--quiet", "--package", "cofferdam", "--target", "aarch64-unknown-linux-gnu"]).run()
}

/// Checks that a second build does nothing, in turn from here and from a bare shell: environments that differ, or an output that is
/// newer than the build that made it, cost everyone who builds from source a second build of everything.
///
/// # Errors
///
/// Names the packages that are built again.
pub(crate) fn builds_are_not_repeated() -> Outcome {
    // The targets of `build::server`: others would unite features differently and be a build of their own.
    let build =
        ["build", "--workspace", "--bin", "cofferdam", "--test", "delivery", "--message-format", "json"];
    run::cargo(build).output()?;
    let bare_shell = || {
        let mut cargo = run::new("cargo");
        cargo.args(build).only_env(&SHELL);
        cargo.output()
    };
    let runs = [("a bare shell's", bare_shell()?), ("our own", run::cargo(build).output()?)];
    for (whose, messages) in runs {
        let repeated: Vec<&str> = messages.lines().filter(|line| line.contains("\"fresh\":false")).collect();
        if let Some(first) = repeated.first() {
            return Err(format!(
                "{whose} second build repeats {} units; `CARGO_LOG=cargo::core::compiler::fingerprint=info cargo build` says why. \
                 The first: {first}",
                repeated.len()
            ));
        }
    }
    Ok(())
}
