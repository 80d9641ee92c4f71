//! Reference documents: those generated from the server's definitions and from test results, and checks of the others.
//! `cargo xtask docs` writes `docs/cli.md` and `docs/configuration.md`; lint fails when they are stale.

mod checks;

use std::fs;
use std::path::Path;

use crate::build;
use crate::run::{self, Outcome};

pub(crate) use checks::check;

/// Variables that only development tasks and tests read.
const DEVELOPMENT_VARIABLES: [(&str, &str); 17] = [
    ("COFFERDAM_BIN", "The server under test."),
    ("COFFERDAM_CHAOS_ROUNDS", "Rounds of the test that kills servers at random moments."),
    ("COFFERDAM_CHAOS_SEED", "Seed of that test, to repeat a run."),
    ("COFFERDAM_EXAM_DIR", "Directory that the exam's reports are written to."),
    ("COFFERDAM_FUZZ_CASES", "Inputs for each fuzz test of envd."),
    ("COFFERDAM_INTERPRETER_DATA", "Keeps the interpreter's template between runs."),
    ("COFFERDAM_INTERPRETER_ROOT", "Root file system with all languages, for the interpreter's tests."),
    ("COFFERDAM_LAYERS", "Layer store with the template `base`, for tests."),
    ("COFFERDAM_MANY_PAUSES", "Pauses in the test that looks for what accumulates."),
    ("COFFERDAM_MCP_CLIENTS", "Directory of the MCP clients under test."),
    ("COFFERDAM_MCP_DATA", "Keeps the MCP gateway's template between runs."),
    (
        "COFFERDAM_OVER_TLS",
        "Has the Python suite reach its server by a domain and TLS only; see `conformance/python/domain.py`.",
    ),
    ("COFFERDAM_NODE_MODULES", "Directory of the JavaScript SDKs under test."),
    ("COFFERDAM_RECIPES", "Directory of staged template recipes."),
    ("COFFERDAM_RESULTS", "File that conformance tests append their outcomes to, one JSON line each."),
    (
        "COFFERDAM_RESPONSES",
        "File that JavaScript conformance tests append the responses of their clients to, one JSON line each.",
    ),
    ("COFFERDAM_TEST_DIR", "Directory for the files of engine tests, instead of the temporary one."),
];

/// Writes the generated documents.
///
/// # Errors
/// The server cannot be built, or a file cannot be written.
pub(crate) fn write() -> Outcome {
    for (path, text) in generated()? {
        let path = run::root().join(path);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Checks that the generated documents are what would be generated now.
///
/// # Errors
/// Names the first stale document.
pub(crate) fn check_generated() -> Outcome {
    for (path, text) in generated()? {
        let current = fs::read_to_string(run::root().join(path)).unwrap_or_default();
        if current != text {
            return Err(format!("{path} is stale: run `cargo xtask docs` and commit it"));
        }
    }
    Ok(())
}

/// Writes `COMPATIBILITY.md` from the results of the last conformance run.
///
/// # Errors
/// There are no results, or the file cannot be written.
pub(crate) fn compatibility() -> Outcome {
    let results = run::target().join("conformance-results.json");
    if !results.exists() {
        return Err(format!("{} is missing: run `cargo xtask conformance` first", results.display()));
    }
    let text = run::new("python3").arg("conformance/compatibility.py").arg(&results).output()?;
    let path = run::root().join("COMPATIBILITY.md");
    fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes docs/exam.md from the reports of the last exam.
pub(crate) fn exam() -> Outcome {
    let mut report = run::new("python3");
    report.arg("conformance/exam_report.py");
    for engine in ["container", "microvm"] {
        let file = crate::conformance::exam_reports().join(format!("{engine}.json"));
        if !file.exists() {
            return Err(format!("{} is missing: run `cargo xtask exam`", file.display()));
        }
        report.arg(file);
    }
    let path = run::root().join("docs/exam.md");
    fs::write(&path, report.output()? + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns paths and texts of the generated documents.
fn generated() -> Outcome<[(&'static str, String); 2]> {
    let server = build::server()?;
    let document = |name: &str| run::new(&server).args(["docs", name]).output();
    let mut configuration = document("configuration")?;
    configuration.push_str("\n\n## Variables of tests and development tasks\n\n");
    for (name, meaning) in DEVELOPMENT_VARIABLES.iter().filter(|(name, _)| checks::is_used(name)) {
        configuration.push_str(&format!("- `{name}`: {meaning}\n"));
    }
    Ok([("docs/cli.md", document("cli")? + "\n"), ("docs/configuration.md", configuration)])
}

/// Returns the text of a file of the repository.
fn read(path: impl AsRef<Path>) -> Outcome<String> {
    let path = run::root().join(path);
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}
