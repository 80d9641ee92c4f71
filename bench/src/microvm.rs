//! Measurements of the microVM engine: boots, clones, memory, snapshots. Every figure's state names what executes the guests, because
//! figures of emulation say nothing about hardware.
//! Goals are the design's for emulation.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Outcome;
use crate::figures::{Figure, ratio};
use crate::host::available_mib;
use crate::server::Server;
use crate::snapshots::{Goals, Load, of_load, post, resume, timed};
use crate::{Arguments, scenarios};

/// Number of clones that run at once.
const CLONES: usize = 8;
/// Memory that the measured sandbox has written to.
const LOAD: Load = Load {
    state: "100 MiB touched",
    mib: 100,
    goals: Goals { pause: "250", frozen: "", unfrozen: "", fork: "", forks: "" },
};

/// Measures everything; returns the engine's description and the figures.
pub(crate) async fn all(arguments: &Arguments) -> Outcome<(String, Vec<Figure>)> {
    let mut options = vec!["--engine", "microvm"];
    if let Some(accelerator) = &arguments.accelerator {
        options.extend(["--accelerator", accelerator]);
    }
    let mut figures = Vec::new();
    let server = Server::start_with(arguments, 0, &options).await?;
    let engine = server.engine().await?;
    let state = arguments.accelerator.clone().unwrap_or_else(|| "default".into());

    let begun = Instant::now();
    let first = server.http.create().await?;
    let wall = begun.elapsed().as_secs_f64() * 1000.0;
    figures.push(Figure::single(
        "first sandbox of a template: boot and warm start",
        &state,
        "ms",
        "",
        wall,
        1.0,
    ));
    let mut boots = Vec::new();
    for _ in 0..arguments.rounds.div_ceil(40) {
        post(&server, &first, "pause", json!({ "memory": false })).await?;
        boots.push(timed(resume(&server, &first)).await);
    }
    figures.push(Figure::latency("boot: resume of a disk-only pause", &state, "", &boots));
    server.http.kill(&first).await?;

    figures.push(scenarios::create(&server, arguments.rounds / 5, "clone to ready", &state, "150").await?);
    figures.push(scenarios::first_output(&server, arguments.rounds / 10, &state, "").await?);
    figures.extend(scenarios::burst(&server, CLONES, &state, "2000").await?);
    figures.extend(memory(&server, &state).await?);
    let mut unfrozen_options = options.clone();
    unfrozen_options.extend(["--keep-frozen-max", "0"]);
    let unfrozen = Server::start_with(arguments, 0, &unfrozen_options).await?;
    figures.extend(of_load(&server, &unfrozen, &LOAD, arguments.rounds.div_ceil(20)).await?);
    unfrozen.stop().await?;
    server.stop().await?;
    Ok((engine, figures))
}

/// Memory of clones that have answered one health check.
async fn memory(server: &Server, state: &str) -> Outcome<Vec<Figure>> {
    let before = available_mib();
    let mut sandboxes = Vec::new();
    for _ in 0..CLONES {
        sandboxes.push(server.http.create().await?);
    }
    let available = (before - available_mib()) * ratio(1, CLONES);
    let mut pss = 0.0;
    for entry in fs::read_dir(server.data().join("microvm/sandboxes"))? {
        let record: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", record["pid"]))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        pss += line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0;
    }
    for sandbox in sandboxes {
        server.http.kill(&sandbox).await?;
    }
    let name = |what: &str| format!("{what} each, {CLONES} clones alive");
    Ok(vec![
        Figure::single(&name("PSS"), state, "MiB", "45", pss * ratio(1, CLONES), 1.0),
        Figure::single(&name("MemAvailable delta"), state, "MiB", "", available, 1.0),
    ])
}
