//! The official SDKs and CLI against a real server: Python (pytest) and JavaScript (node's own runner).
//! Packages are the newest of their registries; their directories are kept under `target/`.
//! Each suite starts its servers itself, on port 0 with data directories of their own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Outcome};
use crate::tally::Tally;
use crate::{build, setup, templates};

/// Runs both suites on the container engine, and a part on microVMs; words select tests as pytest does. `--engine microvm` runs
/// everything on those instead, emulated, which takes hours.
pub(crate) fn run(rest: &[String]) -> Outcome<Tally> {
    let on_machines = rest.first().is_some_and(|word| word == "--engine");
    let rest = match rest {
        [option, engine, words @ ..] if on_machines && engine == "microvm" => words,
        [option, ..] if on_machines => return Err(format!("{option} takes microvm here")),
        words => words,
    };
    setup::for_testing()?;
    let server = build::server()?;
    let envd = build::envd("dev")?;
    // Emulation makes the size of the one for tests felt.
    let (guest_envd, guest_init) = (build::envd("envd")?, build::guest_init("envd")?);
    let microvm = build::microvm()?;
    let layers = build::base_layer()?;
    let criu = build::criu()?;
    let recipes = ["code-interpreter-v1", "httpbin"].map(templates::staged);
    let recipes = recipes.into_iter().collect::<Outcome<Vec<PathBuf>>>()?;
    let authorities = templates::own_authorities()?;
    let suites = run::root().join("conformance");
    let python = python(&suites)?;
    let modules = javascript(&suites)?;
    let machines = |command: &mut run::Run| {
        command.env("COFFERDAM_ENGINE", "microvm").env("COFFERDAM_ACCELERATOR", "tcg");
        command.env("COFFERDAM_MICROVM", &microvm).env("COFFERDAM_ENVD", &guest_envd);
        command.env("COFFERDAM_GUEST_INIT", &guest_init);
        // A server looks after what either engine has left, and the next one may not be given QEMU.
        command.env("COFFERDAM_INTERPRETER_DATA", run::target().join("interpreter-data-of-machines"));
    };
    let give = |command: &mut run::Run| {
        command.env("COFFERDAM_BIN", &server).env("COFFERDAM_ENVD", &envd).env("COFFERDAM_LAYERS", &layers);
        command.env("COFFERDAM_NODE_MODULES", &modules).env("COFFERDAM_CRIU", &criu);
        command.env("COFFERDAM_RECIPES", recipes[0].parent().unwrap_or(&suites));
        // Kept between runs: its template takes minutes to build, and seconds to be found again.
        command.env("COFFERDAM_INTERPRETER_DATA", run::target().join("interpreter-data"));
        if let Some(authorities) = &authorities {
            command.env("COFFERDAM_SANDBOX_CA", authorities);
        }
        if on_machines {
            machines(command);
        }
    };
    let pytest = |command: &mut run::Run, suite: &str| {
        command.args(["-m", "pytest", "-p", "no:cacheprovider", suite]);
        // Whole messages in its summary, which is told again at the end.
        command.env("CI", "true");
        give(command);
    };
    let mut tally = Tally::default();
    let mut all = run::new(&python);
    pytest(&mut all, "conformance/python");
    tally.add("python", all.args(rest).tally());
    if rest.is_empty() && !on_machines {
        let mut part = run::new(&python);
        pytest(&mut part, "conformance/python");
        machines(&mut part);
        part.args(["-m", "every_engine"]).env("COFFERDAM_CHAOS_ROUNDS", "12");
        tally.add("python on microVMs", part.tally());
    }
    if rest.is_empty() {
        // In a network of its own, which plays the host's.
        let mut network = run::new("unshare");
        pytest(network.arg("--net").arg(&python), "conformance/network");
        tally.add("network", network.tally());
        let mut node = run::new("node");
        node.args(["--test", "--test-concurrency=1", "--test-reporter=tap"])
            .args(tests(&modules.join("tests"))?);
        give(&mut node);
        tally.add("javascript", node.tally());
    }
    Ok(tally)
}

fn python(suites: &Path) -> Outcome<PathBuf> {
    let home = run::target().join("conformance/venv");
    if !home.join("bin/python").exists() {
        run::new("python3").args(["-m", "venv"]).arg(&home).run()?;
    }
    let mut install = run::new(home.join("bin/pip"));
    install
        .args(["install", "--quiet", "--upgrade", "--requirement"])
        .arg(suites.join("python/requirements.txt"));
    install.run()?;
    Ok(home.join("bin/python"))
}

/// Node looks for modules above the test's own directory, so the tests are copied beside them.
fn javascript(suites: &Path) -> Outcome<PathBuf> {
    let home = run::target().join("conformance/js");
    let tests = home.join("tests");
    let _ = fs::remove_dir_all(&tests);
    fs::create_dir_all(&tests).map_err(|error| format!("{}: {error}", tests.display()))?;
    for entry in fs::read_dir(suites.join("js")).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        let dir = if name == "package.json" { &home } else { &tests };
        fs::copy(&path, dir.join(name)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    run::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&home).run()?;
    Ok(home)
}

fn tests(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.to_string_lossy().ends_with(".test.mjs")).collect())
}
