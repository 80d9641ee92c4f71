//! Runs the official SDKs and CLI against a real server: Python (pytest) and JavaScript (node's own runner).
//! Client packages are the newest of their registries; they are installed under `target/`.
//! Each suite starts its servers itself, on port 0 with data directories of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::budget::Budget;
use crate::run::{self, Outcome, Run};
use crate::tally::Tally;
use crate::{build, templates};

/// Everything that the suites need, built and installed.
pub(crate) struct Environment {
    variables: Vec<(&'static str, PathBuf)>,
    /// The further variables of runs on microVMs.
    microvm_variables: Vec<(&'static str, PathBuf)>,
    clients: Clients,
}

/// The installed client packages.
#[derive(Clone)]
pub(crate) struct Clients {
    python: PathBuf,
    node_modules: PathBuf,
    /// Clients of MCP servers: `old` and `new` (Python) and `js`.
    mcp: PathBuf,
}

impl Clients {
    /// The interpreter that has the Python packages.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }
}

/// Which tests run, and how.
struct Selection<'a> {
    /// Words for pytest.
    words: &'a [String],
    engine: Engine,
}

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Container,
    Microvm,
}

/// `cargo xtask conformance`: all suites, or the Python tests that words select as pytest does. `--engine microvm` runs everything on
/// emulated microVMs, which takes hours.
pub(crate) fn run(rest: &[String]) -> Outcome<Tally> {
    let selection = match rest {
        [option, engine, words @ ..] if option == "--engine" && engine == "microvm" => {
            Selection { words, engine: Engine::Microvm }
        }
        [option, ..] if option == "--engine" => return Err(format!("{option} takes microvm here")),
        words => Selection { words, engine: Engine::Container },
    };
    let environment = Environment::prepare(&build::server()?, clients()?)?;
    let results = Results::begin()?;
    let mut tally = Tally::default();
    if selection.words.is_empty() && selection.engine == Engine::Container {
        all(&environment, &mut Budget::new(), &mut tally);
    } else {
        let mut tests = environment.pytest("conformance/python", selection.engine);
        tally.add("python", tests.args(selection.words).tally());
        if selection.words.is_empty() {
            tally.add("network", environment.network(selection.engine).tally());
            tally.add("domain", environment.domain().tally());
            tally.add("javascript", environment.javascript(selection.engine));
        }
    }
    results.finish()?;
    Ok(tally)
}

/// Runs the exam on both engines; leaves their reports in [`exam_reports`].
pub(crate) fn exam() -> Outcome {
    let environment = Environment::prepare(&build::server()?, clients()?)?;
    let dir = results_dir();
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    for engine in [Engine::Container, Engine::Microvm] {
        environment.pytest("conformance/python/test_exam.py", engine).run()?;
    }
    Ok(())
}

/// Directory of the exam's reports, one file for each engine.
pub(crate) fn exam_reports() -> PathBuf {
    run::target().join("exam")
}

/// All suites on the container engine, and the tests marked `every_engine` on microVMs. Budgets are for two idle cores.
pub(crate) fn all(environment: &Environment, budget: &mut Budget, tally: &mut Tally) {
    let python = |engine: Engine, words: &[&str]| {
        let mut tests = environment.pytest("conformance/python", engine);
        tests.args(["--durations=20", "--durations-min=1"]).args(words);
        if engine == Engine::Microvm {
            tests.env("COFFERDAM_CHAOS_ROUNDS", "12");
        }
        tests.tally()
    };
    let beside = ["-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder"];
    let words = [&beside[..], &["-m", "not alone"]].concat();
    tally.add("python", budget.part("python, two at a time", 420, || python(Engine::Container, &words)));
    let words = ["-m", "alone"];
    tally
        .add("python alone", budget.part("python, one at a time", 190, || python(Engine::Container, &words)));
    let words = [&beside[..], &["-m", "every_engine"]].concat();
    tally.add("microVMs", budget.part("python on microVMs", 440, || python(Engine::Microvm, &words)));
    // Both mostly wait, each in a network of its own.
    let (network, domain) = budget.part("network and domain", 90, || {
        thread::scope(|scope| {
            let network = scope.spawn(|| environment.network(Engine::Container).tally());
            let domain = environment.domain().tally();
            (network.join().unwrap_or_else(|_| Err("a thread of xtask panicked".to_owned())), domain)
        })
    });
    tally.add("network", network);
    tally.add("domain", domain);
    let javascript = || environment.javascript(Engine::Container);
    tally.add("javascript", budget.part("javascript", 120, javascript));
}

impl Environment {
    /// Builds what runs in sandboxes, sets up both engines and stages recipes.
    pub(crate) fn prepare(server: &Path, clients: Clients) -> Outcome<Self> {
        let debug = build::sandbox_programs("dev")?;
        // Loading the larger debug builds would take seconds in every emulated guest.
        let small = build::sandbox_programs("envd")?;
        let [recipes, ..] = ["code-interpreter-v1", "httpbin", "mcp-gateway"].map(templates::staged);
        let recipes = recipes?.parent().map(Path::to_owned).unwrap_or_default();
        let variables = vec![
            ("COFFERDAM_BIN", server.to_owned()),
            ("COFFERDAM_ENVD", debug.envd),
            ("COFFERDAM_LAYERS", build::base_layer(server)?),
            ("COFFERDAM_NODE_MODULES", clients.node_modules.clone()),
            ("COFFERDAM_CRIU", build::criu(server)?),
            ("COFFERDAM_RECIPES", recipes),
            // Kept between runs: its template takes minutes to build, and seconds to be found again.
            ("COFFERDAM_INTERPRETER_DATA", run::target().join("interpreter-data")),
            ("COFFERDAM_MCP_DATA", run::target().join("mcp-data")),
            ("COFFERDAM_MCP_CLIENTS", clients.mcp.clone()),
        ];
        let microvm_variables = vec![
            ("COFFERDAM_ENGINE", "microvm".into()),
            ("COFFERDAM_ACCELERATOR", "tcg".into()),
            ("COFFERDAM_MICROVM", build::microvm(server)?),
            ("COFFERDAM_ENVD", small.envd),
            ("COFFERDAM_GUEST_INIT", small.guest_init),
            // A server sweeps what both engines left over in its data directory, and the next one may be started without QEMU.
            ("COFFERDAM_INTERPRETER_DATA", run::target().join("interpreter-data-microvm")),
            ("COFFERDAM_MCP_DATA", run::target().join("mcp-data-microvm")),
        ];
        Ok(Self { variables, microvm_variables, clients })
    }

    fn give(&self, command: &mut Run, engine: Engine) {
        let microvm: &[_] = if engine == Engine::Microvm { &self.microvm_variables } else { &[] };
        for (name, value) in self.variables.iter().chain(microvm) {
            command.env(name, value);
        }
    }

    fn pytest(&self, suite: &str, engine: Engine) -> Run {
        let mut command = run::new(&self.clients.python);
        command.args(["-m", "pytest", "-p", "no:cacheprovider", suite]);
        // Whole messages in its summary, which is repeated at the end.
        command.env("CI", "true").env("COFFERDAM_RESULTS", results_part(suite, engine));
        command.env("COFFERDAM_EXAM_DIR", exam_reports());
        self.give(&mut command, engine);
        command
    }

    /// The network suite, in a network namespace that plays the host's network.
    fn network(&self, engine: Engine) -> Run {
        let mut command = run::new("unshare");
        command.arg("--net").arg(&self.clients.python);
        command.args(["-m", "pytest", "-p", "no:cacheprovider", "conformance/network"]);
        command.env("CI", "true").env("COFFERDAM_RESULTS", results_part("conformance/network", engine));
        self.give(&mut command, engine);
        command
    }

    /// The suite of the server's own domain, in namespaces in which it may change how names resolve and what is trusted.
    fn domain(&self) -> Run {
        let mut command = run::new("unshare");
        command.args(["--net", "--mount"]).arg(&self.clients.python);
        command.args(["-m", "pytest", "-p", "no:cacheprovider", "conformance/domain"]);
        command
            .env("CI", "true")
            .env("COFFERDAM_RESULTS", results_part("conformance/domain", Engine::Container));
        self.give(&mut command, Engine::Container);
        command
    }

    fn node(&self, engine: Engine) -> Outcome<Run> {
        let tests = self.clients.node_modules.join("tests");
        let mut command = run::new("node");
        let responses = responses(engine);
        let _ = fs::remove_file(&responses);
        command.env("COFFERDAM_RESPONSES", &responses);
        // By environment, so that the CLI that tests start is recorded as well.
        command.env("NODE_OPTIONS", format!("--import={}", tests.join("recording.mjs").display()));
        command.args(["--test", "--test-concurrency=2"]);
        command.args(["--test-reporter=tap", "--test-reporter-destination=stdout"]);
        command.arg(format!("--test-reporter={}", tests.join("results.mjs").display()));
        let results = results_part("conformance/js", engine);
        command.arg(format!("--test-reporter-destination={}", results.display()));
        command.args(test_files(&tests)?);
        self.give(&mut command, engine);
        Ok(command)
    }

    /// Runs the JavaScript suite, then compares what its clients received with the OpenAPI documents.
    fn javascript(&self, engine: Engine) -> Outcome<Tally> {
        let mut tally = self.node(engine)?.tally()?;
        let mut compare = run::new(&self.clients.python);
        compare.arg("conformance/python/contract.py").arg(responses(engine));
        tally.step("responses to JavaScript clients", compare.run());
        Ok(tally)
    }

    /// Builds the templates that several suites use, before they run.
    pub(crate) fn build_templates(&self) -> Outcome {
        let mut command = run::new(&self.clients.python);
        command.arg("conformance/python/prepare.py");
        self.give(&mut command, Engine::Container);
        command.run()
    }
}

/// Outcomes of all tests by client package: each suite writes a file of JSON lines, which become one array.
pub(crate) struct Results;

fn results_dir() -> PathBuf {
    run::target().join("conformance-results")
}

fn results_part(suite: &str, engine: Engine) -> PathBuf {
    let engine = if engine == Engine::Microvm { "microvm" } else { "container" };
    results_dir().join(format!("{}-{engine}.jsonl", suite.rsplit('/').next().unwrap_or(suite)))
}

/// What the JavaScript clients received.
fn responses(engine: Engine) -> PathBuf {
    results_part("conformance/js", engine).with_extension("responses")
}

impl Results {
    /// Removes the results of earlier runs.
    pub(crate) fn begin() -> Outcome<Self> {
        let dir = results_dir();
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self)
    }

    /// Writes `target/conformance-results.json`: rows of client, version, test, outcome and engine.
    pub(crate) fn finish(self) -> Outcome {
        let mut rows: Vec<String> = Vec::new();
        let parts = fs::read_dir(results_dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in parts.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")) {
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            rows.extend(text.lines().map(str::to_owned));
        }
        rows.sort_unstable();
        let path = run::target().join("conformance-results.json");
        let written = fs::write(&path, format!("[\n{}\n]\n", rows.join(",\n")));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Installs the newest client packages.
pub(crate) fn clients() -> Outcome<Clients> {
    let suites = run::root().join("conformance");
    Ok(Clients { python: python(&suites)?, node_modules: javascript(&suites)?, mcp: mcp()? })
}

/// Clients of MCP servers. The second version of the Python client lacks functions that documented programs use, so both are there.
fn mcp() -> Outcome<PathBuf> {
    let home = run::target().join("mcp-clients");
    for (name, package) in [("old", "mcp<2"), ("new", "mcp")] {
        let environment = home.join(name);
        if !environment.join("bin/python").exists() {
            run::new("python3").args(["-m", "venv"]).arg(&environment).run()?;
        }
        run::new(environment.join("bin/pip")).args(["install", "--quiet", "--upgrade", package]).run()?;
    }
    let mut npm = run::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(home.join("js"));
    // The inspector needs a newer Node than Debian's.
    npm.args(["@modelcontextprotocol/sdk@latest", "@modelcontextprotocol/inspector@latest", "node@24"])
        .run()?;
    Ok(home)
}

/// `cargo xtask mcp-catalogue`: starts all servers of the MCP gateway's catalogue and writes what they offer to `docs/mcp.md`.
pub(crate) fn mcp_catalogue(rest: &[String]) -> Outcome {
    let environment = Environment::prepare(&build::server()?, clients()?)?;
    let mut command = run::new(&environment.clients.python);
    command.arg("conformance/python/mcp_catalogue.py").args(rest);
    environment.give(&mut command, Engine::Container);
    command.run()
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

/// Node searches for modules in the directories above a test, so the tests are copied beside them.
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

fn test_files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.to_string_lossy().ends_with(".test.mjs")).collect();
    files.sort_unstable();
    Ok(files)
}
