//! Development tasks. `cargo xtask quickstart` makes a running server of a fresh machine; `cargo xtask test` proves everything.
//! No dependencies, so it is there in a second.
//! Missing tools are installed or named; nothing is skipped silently.
#![forbid(unsafe_code)]

mod build;
mod conformance;
mod interpreter;
mod lint;
mod run;
mod setup;
mod tally;
mod templates;

use std::process::ExitCode;

use run::Outcome;
use tally::Tally;

const USAGE: &str = "\
usage: cargo xtask <task>

  quickstart    install what is missing, build, and run a first sandbox
  test          everything: lint, unit, engine and conformance tests
  lint          formatting, clippy, other architectures
  unit          unit and engine tests
  languages     only the root file system that the interpreter's tests run in
  conformance   the official SDKs and CLI against a real server
  template      builds a recipe of templates/ on this machine's server
  build         release build of the server and envd
  bench         speed and memory, printed and written to target/bench.json

words after the task go to the tool behind it (quickstart, unit, conformance, template, bench)";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let task = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let outcome = match task.as_str() {
        "quickstart" => quickstart(&rest),
        "test" => test(),
        "lint" => lint::all(),
        "unit" => unit(&rest).map(|tally| println!("{tally}")),
        "languages" => {
            setup::for_testing().and_then(|()| interpreter::root()).map(|root| println!("{}", root.display()))
        }
        "conformance" => conformance::run(&rest).map(|tally| println!("{tally}")),
        "template" => templates::build(&rest),
        "build" => build::release().map(|_| ()),
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

fn quickstart(rest: &[String]) -> Outcome {
    setup::for_running()?;
    let server = build::release()?;
    run::new(server).arg("quickstart").args(rest).run()
}

fn bench(rest: &[String]) -> Outcome {
    setup::for_running()?;
    let server = build::release()?;
    let microvm = build::microvm()?;
    run::cargo(["build", "--release", "--package", "bench"]).run()?;
    let mut bench = run::new(server.with_file_name("bench"));
    bench.env("COFFERDAM_MICROVM", microvm).arg("--server").arg(&server).args(rest).run()
}

fn unit(rest: &[String]) -> Outcome<Tally> {
    setup::for_testing()?;
    let envd = build::envd("dev")?;
    let layers = build::base_layer()?;
    let criu = build::criu()?;
    let (microvm, guest_init) = (build::microvm()?, build::guest_init("dev")?);
    let languages = interpreter::root()?;
    let mut tests = run::cargo(["nextest", "run", "--workspace"]);
    tests.args(rest).env("COFFERDAM_ENVD", envd).env("COFFERDAM_LAYERS", layers);
    tests.env("COFFERDAM_CRIU", criu).env("COFFERDAM_INTERPRETER_ROOT", languages);
    tests.env("COFFERDAM_MICROVM", microvm).env("COFFERDAM_GUEST_INIT", guest_init);
    tests.tally()
}

fn test() -> Outcome {
    let mut tally = Tally::default();
    tally.step("lint", lint::all());
    tally.add("unit", unit(&[]));
    tally.add("conformance", conformance::run(&[]));
    println!("\n{}{tally}", tally.failures());
    if tally.failed == 0 { Ok(()) } else { Err("some tests failed".to_owned()) }
}
