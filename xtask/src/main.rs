//! Development tasks. `cargo xtask quickstart` installs, builds and starts a server; `cargo xtask test` runs every check.
//! xtask has no dependencies, so that cargo builds it in a second.
//! Missing tools are installed or named; nothing is skipped silently.
#![forbid(unsafe_code)]

mod budget;
mod build;
mod conformance;
mod docs;
mod fuzz;
mod interpreter;
mod lint;
mod lock;
mod package;
mod run;
mod setup;
mod tally;
mod templates;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use budget::Budget;
use conformance::Environment;
use run::Outcome;
use tally::Tally;

const USAGE: &str = "\
usage: cargo xtask <task>

  quickstart    install what is missing, build, and run a first sandbox
  test          everything: lint, unit, engine and conformance tests
  lint          formatting, clippy, unused dependencies, documents, other architectures, repeated builds
  unit          unit and engine tests
  languages     the root file system that the interpreter's tests run in
  conformance   the official SDKs and CLI against a real server
  template      builds a recipe of templates/ on this machine's server
  build         release build of the server, envd and guest-init
  dist          the same for packages: slower to build, a little faster
  package       a Debian package of that build, in target/package/; with --quick of a build that is made sooner
  package-walk  installs, upgrades, removes and purges it in a Debian root, beside a running sandbox
  docs          writes docs/cli.md and docs/configuration.md; with --check only checks the other documents
  mcp-catalogue starts the servers of the MCP gateway's catalogue, or those named, and writes docs/mcp.md
  exam          attacks the host from inside sandboxes of both engines, and writes docs/exam.md
  fuzz          random input for every parser of untrusted input, and unsafe code under valgrind; --minutes 10 for each
  compatibility writes COMPATIBILITY.md from the results of the last conformance run
  bench         speed and memory, printed and written to target/bench.json; with --dist first, of that build

words after the task go to the tool behind it (quickstart, unit, conformance, template, bench);
test, unit, conformance, exam and bench wait for each other in one checkout (target/xtask.lock)";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let task = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let outcome = match task.as_str() {
        "quickstart" => quickstart(&rest),
        "test" => test(),
        "lint" => lint(),
        "unit" => unit_alone(&rest).and_then(|tally| conclude(&tally)),
        "languages" => {
            setup::for_testing().and_then(|()| interpreter::root()).map(|root| println!("{}", root.display()))
        }
        "conformance" => conformance_alone(&rest).and_then(|tally| conclude(&tally)),
        "template" => templates::build(&rest),
        "exam" => exam(),
        "mcp-catalogue" => setup::for_testing().and_then(|()| conformance::mcp_catalogue(&rest)),
        "docs" if rest.first().is_some_and(|word| word == "--check") => docs::check(),
        "docs" => docs::write(),
        "fuzz" => fuzz::all(&rest),
        "compatibility" => docs::compatibility(),
        "build" => setup::for_running().and_then(|()| build::release("release")).map(|_| ()),
        "dist" => setup::for_running().and_then(|()| build::release("dist")).map(|_| ()),
        "package" => package::build(&rest).map(|file| println!("{}", file.display())),
        "package-walk" => package::walk(),
        "bench" => bench(&rest),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn lint() -> Outcome {
    setup::for_testing()?;
    lint::all()?;
    lint::builds_are_not_repeated()?;
    docs::check_generated()
}

fn quickstart(rest: &[String]) -> Outcome {
    setup::for_running()?;
    let server = build::release_server("quick")?;
    thread::scope(|scope| {
        // Mostly waits for packages, so it costs envd's compilation little.
        let setup = scope.spawn(|| {
            run::logged("quickstart-setup", || {
                quickstart_of(&server, &without_recipes(rest)).arg("--setup-only").run()
            })
        });
        build::programs_beside(&server, "quick")?;
        if setup.join().expect("the thread does not panic").is_err() {
            eprintln!("the template and CRIU are not complete: tried again");
        }
        Outcome::Ok(())
    })?;
    let mut quickstart = quickstart_of(&server, rest);
    if rest.iter().any(|word| word == "--with") {
        let recipe = templates::staged("code-interpreter-v1")?;
        quickstart.env("COFFERDAM_RECIPES", recipe.parent().unwrap_or(Path::new(".")));
    }
    quickstart.run()
}

/// What the set-up alone is not told: `--with` and its value.
fn without_recipes(rest: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    let mut all = rest.iter();
    while let Some(word) = all.next() {
        if word == "--with" {
            all.next();
        } else {
            words.push(word.clone());
        }
    }
    words
}

fn quickstart_of(server: &Path, rest: &[String]) -> run::Run {
    let mut quickstart = run::new(server);
    quickstart.arg("quickstart").args(rest);
    quickstart
}

fn bench(rest: &[String]) -> Outcome {
    setup::for_running()?;
    let _lock = lock::take()?;
    let (profile, rest) = match rest {
        [option, rest @ ..] if option == "--dist" => ("dist", rest),
        rest => ("release", rest),
    };
    let server = build::release(profile)?;
    run::cargo(["build", "--release", "--package", "bench"]).run()?;
    let mut bench = run::new(run::target().join("release/bench"));
    bench.env("COFFERDAM_MICROVM", build::microvm(&server)?).env("COFFERDAM_CRIU", build::criu(&server)?);
    build::base_layer(&server)?;
    bench.arg("--server").arg(&server).args(rest).run()
}

/// Unit and engine tests with what they need: builds it, or takes what `test` has built.
fn unit(server: &Path, languages: &Path, rest: &[String]) -> Outcome<Tally> {
    let programs = build::sandbox_programs("dev")?;
    let mut tests = run::cargo(["nextest", "run", "--workspace"]);
    tests.args(rest).env("COFFERDAM_ENVD", programs.envd).env("COFFERDAM_LAYERS", build::base_layer(server)?);
    tests.env("COFFERDAM_CRIU", build::criu(server)?).env("COFFERDAM_INTERPRETER_ROOT", languages);
    tests.env("COFFERDAM_MICROVM", build::microvm(server)?).env("COFFERDAM_GUEST_INIT", programs.guest_init);
    tests.tally()
}

fn unit_alone(rest: &[String]) -> Outcome<Tally> {
    setup::for_testing()?;
    let _lock = lock::take()?;
    unit(&build::server()?, &interpreter::root()?, rest)
}

fn exam() -> Outcome {
    setup::for_testing()?;
    let _lock = lock::take()?;
    conformance::exam()?;
    docs::exam()
}

fn conformance_alone(rest: &[String]) -> Outcome<Tally> {
    setup::for_testing()?;
    let _lock = lock::take()?;
    conformance::run(rest)
}

/// Everything. What only waits for packages to be downloaded runs beside the compiler, the templates' builds beside the unit tests.
fn test() -> Outcome {
    let mut budget = Budget::new();
    let mut tally = Tally::default();
    budget.part("setup", 60, setup::for_testing)?;
    let _lock = lock::take()?;
    thread::scope(|scope| {
        let clients = scope.spawn(|| run::logged("clients", conformance::clients));
        let languages = scope.spawn(|| run::logged("languages", interpreter::root));
        tally.step("lint", budget.part("lint", 240, lint::all));
        tally.step("build", budget.part("build", 300, build::tests));
        tally.step("fresh builds", budget.part("builds are not repeated", 20, lint::builds_are_not_repeated));
        tally.step("generated documents", budget.part("generated documents", 10, docs::check_generated));
        let environment = budget
            .part("what tests share", 180, || Environment::prepare(&build::server()?, finished(clients)?));
        let (server, environment) = match environment.and_then(|ready| Ok((build::server()?, ready))) {
            Ok((server, environment)) => (server, Arc::new(environment)),
            Err(message) => return tally.add("what tests share", Err(message)),
        };
        let templates = scope.spawn({
            let environment = Arc::clone(&environment);
            move || run::logged("templates", || environment.build_templates())
        });
        let outcome = budget.part("unit and engine tests", 480, || unit(&server, &finished(languages)?, &[]));
        tally.add("unit", outcome);
        tally.step("templates", budget.part("templates", 60, || finished(templates)));
        match conformance::Results::begin() {
            Ok(results) => {
                conformance::all(&environment, &mut budget, &mut tally);
                tally.step("results", results.finish());
            }
            Err(message) => tally.add("conformance", Err(message)),
        }
    });
    println!("\nslowest tests:\n{}\n{budget}\n{}", tally.slowest(), tally.failures());
    conclude(&tally)
}

/// Prints how many tests passed and failed.
///
/// # Errors
/// Some failed.
fn conclude(tally: &Tally) -> Outcome {
    println!("{tally}");
    if tally.failed == 0 { Ok(()) } else { Err("some tests failed".to_owned()) }
}

/// Waits for a thread.
fn finished<T>(thread: thread::ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread.join().unwrap_or_else(|_| Err("a thread of xtask panicked".to_owned()))
}
