//! Formatting, clippy, unused dependencies, other architectures, and builds that are repeated for no reason.
//! Warnings are errors here, and only here, so that work in progress stays quick.
//! aarch64 is checked, not built: there is nothing here to run it. Programs for sandboxes are checked with their own C library (musl).

use std::fs;
use std::path::PathBuf;

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
    workspace_dependencies_are_used()?;
    run::cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]).run()?;
    // Each `cargo check` unites the features of its packages, so each further one compiles their dependencies again.
    let mut sandbox = run::cargo(["check", "--quiet", "--target", "aarch64-unknown-linux-musl"]);
    sandbox
        .args([
            "--package",
            "envd",
            "--package",
            "guest-init",
            "--package",
            "interpreter",
            "--package",
            "mcp-gateway",
        ])
        .run()?;
    run::cargo(["check", "--quiet", "--package", "cofferdam", "--target", "aarch64-unknown-linux-gnu"]).run()
}

/// Checks that a package uses each entry of `[workspace.dependencies]`, which `cargo machete` does not look at.
fn workspace_dependencies_are_used() -> Outcome {
    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let workspace = read(run::root().join("Cargo.toml"))?;
    let entries = workspace.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    let entries = entries.take_while(|line| !line.starts_with('['));
    let mut packages =
        vec![read(run::root().join("xtask/Cargo.toml"))?, read(run::root().join("bench/Cargo.toml"))?];
    for entry in fs::read_dir(run::root().join("crates")).map_err(|error| format!("crates: {error}"))? {
        packages.push(read(entry.map_err(|error| format!("crates: {error}"))?.path().join("Cargo.toml"))?);
    }
    for name in entries.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name) {
        let (plain, table) = (format!("{name}.workspace = true"), format!("{name} = {{ workspace = true"));
        let uses = |line: &str| line.starts_with(&plain) || line.starts_with(&table);
        if !packages.iter().any(|package| package.lines().any(uses)) {
            return Err(format!(
                "no package uses the workspace's dependency {name}: remove it from Cargo.toml"
            ));
        }
    }
    Ok(())
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
