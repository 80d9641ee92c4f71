//! Speed and memory of a real server, as its users see them: over HTTP on loopback, against a release build.
//! Prints a table and writes JSON; docs/performance.md keeps the figures beside the goals.
//! Figures of a shared machine are noisy: medians and ratios within one run are what they are good for.
#![forbid(unsafe_code)]

mod figures;
mod host;
mod http;
mod microvm;
mod scenarios;
mod server;
mod snapshots;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use figures::Report;
use server::Server;

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server's release binary, with envd beside it.
    #[arg(long)]
    server: PathBuf,
    /// Layer store with the base template.
    #[arg(long, default_value = "target/layers")]
    layers: PathBuf,
    /// Rounds of each latency measurement.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Sandboxes alive at once in the largest memory measurement.
    #[arg(long, default_value_t = 1000)]
    alive: usize,
    /// Size of the uploaded and downloaded file, MiB.
    #[arg(long, default_value_t = 512)]
    file_mib: usize,
    /// Directory of CRIU, by default where `cofferdam quickstart` puts it; without it snapshots cannot be measured.
    #[arg(long, env = "COFFERDAM_CRIU", default_value = "/var/lib/cofferdam/tools/criu")]
    criu: PathBuf,
    /// Measure the microVM engine instead, which needs `COFFERDAM_MICROVM`.
    #[arg(long)]
    microvm: bool,
    /// What executes microVMs' guests: `kvm` or `tcg`.
    #[arg(long)]
    accelerator: Option<String>,
    /// File that the figures are written to as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    let arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    // Servers are stopped where their variables are dropped, so an interrupted measurement must be dropped, too.
    tokio::select! {
        measured = measure(&arguments) => finish(&measured?, &arguments),
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    }
}

/// Measures the engine that the arguments name.
async fn measure(arguments: &Arguments) -> Outcome<Report> {
    let mut report = Report::new(host::describe());
    if arguments.microvm {
        let (engine, figures) = microvm::all(arguments).await?;
        report.engine = engine;
        report.add_all(figures);
    } else {
        containers(arguments, &mut report).await?;
    }
    Ok(report)
}

/// The container engine, on servers without and with prepared slots.
async fn containers(arguments: &Arguments, report: &mut Report) -> Outcome {
    let rounds = arguments.rounds;
    let server = Server::start(arguments, 0).await?;
    report.engine = server.engine().await?;
    report.add(scenarios::create(&server, rounds, "create to ready, no slot ready", "cold", "5 / 20").await?);
    server.stop().await?;

    let server = Server::start(arguments, 16).await?;
    report.add(scenarios::create(&server, rounds, "create to ready", "slots ready", "5 / 20").await?);
    report.add(scenarios::first_output(&server, rounds, "slots ready", "15 / 40").await?);
    report.add(scenarios::kill(&server, rounds / 2).await?);
    report.add(scenarios::exec(&server, rounds * 2).await?);
    report.add(scenarios::under_load(&server, rounds).await?);
    report.add(scenarios::beside_a_fork_bomb(&server).await?);
    report.add_all(scenarios::burst(&server, 100, "16 slots ready", "500").await?);
    report.add_all(scenarios::files(&server, arguments.file_mib).await?);
    let unfrozen = Server::start_with(arguments, 16, &["--keep-frozen-max", "0"]).await?;
    report.add_all(snapshots::all(&server, &unfrozen, rounds / 10).await?);
    unfrozen.stop().await?;
    report.add_all(scenarios::alive(&server, &[100, arguments.alive]).await?);
    server.stop().await
}

fn finish(report: &Report, arguments: &Arguments) -> Outcome {
    println!("{report}");
    fs::write(&arguments.json, serde_json::to_vec_pretty(report)?)?;
    println!("written to {}", arguments.json.display());
    Ok(())
}
