//! Speed and memory of a real server, as its users see them: over HTTP on loopback, against a release build.
//! Prints a table and writes JSON; docs/performance.md keeps the figures beside the goals.
//! Figures of a shared machine are noisy: medians and ratios within one run are what they are good for.
#![forbid(unsafe_code)]

mod figures;
mod http;
mod machine;
mod machines;
mod scenarios;
mod server;
mod snapshots;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Parser;

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
    /// Size of the file that goes up and down, MiB.
    #[arg(long, default_value_t = 512)]
    file_mib: usize,
    /// Measure the microVM engine instead, which needs `COFFERDAM_MICROVM`.
    #[arg(long)]
    microvm: bool,
    /// What executes its guests: `kvm` or `tcg`.
    #[arg(long)]
    accelerator: Option<String>,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    let arguments = Arguments::parse();
    let mut report = Report::new(machine::describe());
    if arguments.microvm {
        let (engine, figures) = machines::all(&arguments).await?;
        report.engine = engine;
        report.add_all(figures);
        return finish(&report, &arguments);
    }
    {
        let server = Server::start(&arguments.server, &arguments.layers, 0).await?;
        report.engine = server.engine().await?;
        report.add(
            scenarios::create(&server, arguments.rounds, "create to ready, no slot ready", "cold", "5 / 20")
                .await?,
        );
        server.stop().await?;
    }
    let server = Server::start(&arguments.server, &arguments.layers, 16).await?;
    report
        .add(scenarios::create(&server, arguments.rounds, "create to ready", "slots ready", "5 / 20").await?);
    report.add(scenarios::first_output(&server, arguments.rounds, "slots ready", "15 / 40").await?);
    report.add(scenarios::kill(&server, arguments.rounds / 2).await?);
    report.add(scenarios::exec(&server, arguments.rounds * 2).await?);
    report.add(scenarios::under_load(&server, arguments.rounds).await?);
    report.add_all(scenarios::burst(&server, 100, "16 slots ready", "500").await?);
    report.add_all(scenarios::files(&server, arguments.file_mib).await?);
    let cold =
        Server::start_with(&arguments.server, &arguments.layers, 16, &["--keep-frozen-max", "0"]).await?;
    report.add_all(snapshots::all(&server, &cold, arguments.rounds / 10).await?);
    cold.stop().await?;
    report.add_all(scenarios::alive(&server, &[100, arguments.alive]).await?);
    server.stop().await?;
    finish(&report, &arguments)
}

fn finish(report: &Report, arguments: &Arguments) -> Outcome {
    println!("{report}");
    fs::write(&arguments.json, serde_json::to_vec_pretty(report)?)?;
    println!("written to {}", arguments.json.display());
    Ok(())
}
