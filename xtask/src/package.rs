//! The Debian package: the server, what runs inside sandboxes, recipes, manual pages, completions, the unit and the configuration.
//! `walk` is a proof that takes minutes: it installs, upgrades, removes and purges the package in a Debian root of its own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Outcome};
use crate::{build, conformance, setup, templates};

/// Recipes that the package brings along.
const RECIPES: [&str; 3] = ["code-interpreter-v1", "httpbin", "mcp-gateway"];

/// Builds the package; returns its path. With `--quick` of the profile that compiles soonest; a word after `--version` is its version.
pub(crate) fn build(rest: &[String]) -> Outcome<PathBuf> {
    setup::for_running()?;
    if !run::cargo(["deb", "--version"]).succeeds() {
        run::cargo(["install", "--locked", "cargo-deb"]).run()?;
    }
    let (profile, rest) = match rest {
        [option, rest @ ..] if option == "--quick" => ("quick", rest),
        rest => ("dist", rest),
    };
    stage(&build::release(profile)?)?;
    let file = dir().join("cofferdam.deb");
    let mut deb = run::cargo(["deb", "--no-build", "--no-strip", "--package", "cofferdam", "--output"]);
    deb.arg(&file);
    match rest {
        [] => {}
        [option, version] if option == "--version" => {
            deb.args(["--deb-version", version]);
        }
        _ => return Err("usage: cargo xtask package [--quick] [--version VERSION]".to_owned()),
    }
    deb.run()?;
    Ok(file)
}

fn dir() -> PathBuf {
    run::target().join("package")
}

/// Puts all that is built for the package where its definition in `crates/cofferdam/Cargo.toml` finds it.
fn stage(server: &Path) -> Outcome {
    let _ = fs::remove_dir_all(dir());
    for part in ["bin", "lib", "man", "completions", "templates"] {
        fs::create_dir_all(dir().join(part)).map_err(|error| error.to_string())?;
    }
    copy(server, &dir().join("bin/cofferdam"))?;
    for program in ["envd", "guest-init"] {
        copy(&server.with_file_name(program), &dir().join("lib").join(program))?;
    }
    for name in RECIPES {
        let to = dir().join("templates").join(name);
        fs::create_dir_all(&to).map_err(|error| error.to_string())?;
        for entry in fs::read_dir(templates::staged(name)?).map_err(|error| error.to_string())?.flatten() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    run::new(server).args(["docs", "manual", "--dir"]).arg(dir().join("man")).run()?;
    for (shell, file) in [("bash", "cofferdam.bash"), ("zsh", "_cofferdam"), ("fish", "cofferdam.fish")] {
        let script = run::new(server).args(["completions", shell]).output()?;
        fs::write(dir().join("completions").join(file), script).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome {
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

/// Two versions of the package in a Debian root: `packaging/walk.py` does what an operator does, and checks what remains.
pub(crate) fn walk() -> Outcome {
    setup::for_testing()?;
    let clients = conformance::clients()?;
    let versions = ["1.0~first", "1.0~second"].map(|version| {
        let built = build(&["--quick".into(), "--version".into(), version.into()])?;
        let kept = run::target().join(format!("cofferdam-{version}.deb"));
        copy(&built, &kept).map(|()| kept)
    });
    let [first, second] = versions;
    run::new("unshare")
        .arg("--mount")
        .arg(clients.python())
        .arg("packaging/walk.py")
        .arg(first?)
        .arg(second?)
        .run()
}
