//! `cofferdam exam`: attacks this host from inside a sandbox of its own server, and reports what got through.
//! `plant` puts flags on the host that must not be reached; `probes/` are the attacks, in Python, run inside a sandbox as root and as its
//! user; `report` says what came of them. The exit code is 1 if an attack got through or could not be carried out.

mod plant;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use cofferdam_client::{Client, CreateOptions, EngineInfo, RunOptions, Sandbox};
use serde_json::json;

use self::plant::Planted;
use self::report::{CaseResult, Outcome, Report};
use crate::access::{admin_token, block_on, read_secret, team_client};
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// The frame first, because the others use it; its `main` is called at the end.
const PROBES: [&str; 6] = [
    include_str!("probes/exam.py"),
    include_str!("probes/kernel.py"),
    include_str!("probes/files.py"),
    include_str!("probes/processes.py"),
    include_str!("probes/network.py"),
    include_str!("probes/resources.py"),
];
const PROBES_PATH: &str = "/tmp/probes.py";
const FACTS_PATH: &str = "/tmp/facts.json";
const NEIGHBOUR_PORT: u16 = 8123;
/// Time limit of both runs of the probes together.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Longest that a command in the neighbouring sandbox may take while its neighbour attacks. Far above what is usual: on a small host the
/// probes compete for the processor as any load does.
const MAX_NEIGHBOUR: Duration = Duration::from_secs(5);

/// Arguments of `exam`.
#[derive(Debug, Args)]
pub(crate) struct ExamArguments {
    #[command(flatten)]
    data: DataDir,
    /// Template of the sandbox that attacks. It needs Python 3.
    #[arg(long, default_value = "base", value_name = "NAME")]
    template: String,
    /// File that the report is written to as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the probes, a Python program, instead of running them.
    #[arg(long)]
    print_probes: bool,
}

pub(crate) fn run(arguments: &ExamArguments) -> Result<ExitCode, Failure> {
    if arguments.print_probes {
        show::line(&program())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("exam needs root: it plants flags on the host that only root may read"));
    }
    let report = block_on(examine(arguments))?;
    if let Some(path) = &arguments.output {
        fs_atomic::write_json(path, &report, fs_atomic::Options::default())
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    }
    if arguments.json {
        show::json(&report)?;
    } else {
        show::line(&report.to_string())?;
    }
    Ok(if report.has_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the whole Python program.
fn program() -> String {
    format!("{}\nmain()\n", PROBES.join("\n"))
}

async fn examine(arguments: &ExamArguments) -> Result<Report, Failure> {
    let client = team_client(&arguments.data)?;
    let engine = client.engine().await?;
    let mut planted = Planted::new(&arguments.data.data_dir, secrets(&arguments.data))?;
    let create = || {
        Sandbox::create(
            &client,
            CreateOptions { timeout: TIMEOUT, ..CreateOptions::new(&arguments.template) },
        )
    };
    let (attacker, neighbour) = (create().await?, create().await?);
    let results = attack(&client, &engine, &mut planted, &attacker, &neighbour).await;
    for sandbox in [attacker, neighbour] {
        sandbox.kill().await?;
    }
    Ok(Report::new(&engine, results?))
}

/// Runs everything between the creation and the end of both sandboxes.
async fn attack(
    client: &Client,
    engine: &EngineInfo,
    planted: &mut Planted,
    attacker: &Sandbox,
    neighbour: &Sandbox,
) -> Result<Vec<CaseResult>, Failure> {
    serve_in_neighbour(neighbour, planted).await?;
    attacker.files().write(PROBES_PATH, program()).await?;
    let memory = attacker.commands().run("free -m | awk '/Mem/ {print $2}'", RunOptions::default()).await?;
    let memory: u64 = memory.stdout_text().trim().parse().unwrap_or(4096);
    let own_kernel = engine.isolation != "shared_kernel";
    let facts = planted.facts(&json!({
        "own_kernel": own_kernel, "memory_mib": memory, "neighbour_port": NEIGHBOUR_PORT,
    }));
    attacker.files().write(FACTS_PATH, facts).await?;
    let mut results = Vec::new();
    for user in ["root", "user"] {
        let watched = watch(neighbour, run_probes(attacker, user));
        let (slowest, lines) = watched.await;
        results.extend(report::parse(&lines?, user)?);
        results.push(neighbour_result(user, slowest));
    }
    results.extend(planted.check_host());
    let alive = client.health().await.is_ok() && attacker.is_running().await.unwrap_or(false);
    results.push(CaseResult::of_host(
        "server_alive",
        "ends the server, or the sandbox's envd",
        "CRASH",
        alive,
    ));
    Ok(results)
}

/// Returns what must not be found in a sandbox: the admin token and the team's key.
fn secrets(data: &DataDir) -> Vec<String> {
    let key = std::env::var("E2B_API_KEY").ok().or_else(|| read_secret(&data.quickstart_key()));
    admin_token(data).ok().into_iter().chain(key).collect()
}

/// Starts a server in the neighbouring sandbox that says the planted text.
async fn serve_in_neighbour(neighbour: &Sandbox, planted: &Planted) -> Result<(), Failure> {
    let server = format!(
        "import socket\ns = socket.create_server(('', {NEIGHBOUR_PORT}))\nprint('ready', flush=True)\n\
         while True:\n  c, _ = s.accept()\n  c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n{}')\n  c.close()\n",
        planted.text
    );
    neighbour.files().write("/tmp/server.py", server).await?;
    let options = RunOptions { timeout: None, ..RunOptions::default() };
    let mut running = neighbour.commands().start("exec python3 /tmp/server.py", options).await?;
    // Its first output says that it listens.
    running.next().await?;
    Ok(())
}

async fn run_probes(attacker: &Sandbox, user: &str) -> Result<String, Failure> {
    let options =
        RunOptions { user: Some(user.to_owned()), timeout: Some(TIMEOUT / 2), ..RunOptions::default() };
    let output = attacker.commands().run(&format!("python3 {PROBES_PATH} {FACTS_PATH}"), options).await?;
    if output.exit.code != 0 {
        return Err(Failure::new(format!("the probes failed as {user}: {}", output.stderr_text())));
    }
    Ok(output.stdout_text())
}

/// Runs commands in the neighbouring sandbox until `work` is done; returns the longest that one took, or `None` if one failed.
async fn watch<T>(neighbour: &Sandbox, work: impl Future<Output = T>) -> (Option<Duration>, T) {
    tokio::pin!(work);
    let mut slowest = Some(Duration::ZERO);
    loop {
        let began = Instant::now();
        let commands = neighbour.commands();
        let answer = commands.run("true", RunOptions::default());
        tokio::pin!(answer);
        let answered = tokio::select! {
            done = &mut work => return (slowest, done),
            answered = &mut answer => answered,
        };
        slowest = answered.ok().and(slowest).map(|slowest| slowest.max(began.elapsed()));
        tokio::select! {
            done = &mut work => return (slowest, done),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

fn neighbour_result(user: &str, slowest: Option<Duration>) -> CaseResult {
    let held = slowest.is_some_and(|slowest| slowest < MAX_NEIGHBOUR);
    let mut result = CaseResult::of_host(
        "neighbour_served",
        "keeps the neighbouring sandbox from running commands",
        "STALL",
        held,
    );
    user.clone_into(&mut result.user);
    result.detail = match slowest {
        Some(slowest) => format!("the slowest of its commands took {} ms", slowest.as_millis()),
        None => "a command failed".to_owned(),
    };
    if !held {
        result.outcome = Outcome::Broken;
    }
    result
}
