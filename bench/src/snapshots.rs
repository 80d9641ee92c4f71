//! The time of pauses, resumes, snapshots and forks of a sandbox: idle, and with Python holding 50 and 300 MiB.
//! Each measurement ends when the sandbox answers again (for a pause, when the call returns).
//! The memory is random, because pages of zeros cost nothing.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::Outcome;
use crate::figures::Figure;
use crate::http::Sandbox;
use crate::server::Server;

/// The loads to measure.
const LOADS: [Load; 3] = [
    Load { state: "idle", mib: 0, goals: NONE },
    Load { state: "Python with 50 MiB", mib: 50, goals: DESIGN },
    Load { state: "Python with 300 MiB", mib: 300, goals: NONE },
];

/// What runs in the measured sandbox.
pub(crate) struct Load {
    pub(crate) state: &'static str,
    /// Random memory that Python holds, MiB.
    pub(crate) mib: usize,
    pub(crate) goals: Goals,
}

/// Goals in milliseconds by call; the design has them for 50 MiB.
pub(crate) struct Goals {
    pub(crate) pause: &'static str,
    pub(crate) frozen: &'static str,
    pub(crate) unfrozen: &'static str,
    pub(crate) fork: &'static str,
    pub(crate) forks: &'static str,
}

const DESIGN: Goals = Goals { pause: "120", frozen: "5", unfrozen: "100", fork: "150", forks: "500" };
const NONE: Goals = Goals { pause: "", frozen: "", unfrozen: "", fork: "", forks: "" };

/// Measures every load. The server `frozen` keeps processes of paused sandboxes in memory, `unfrozen` does not.
pub(crate) async fn all(frozen: &Server, unfrozen: &Server, rounds: usize) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    for load in LOADS {
        figures.extend(of_load(frozen, unfrozen, &load, rounds).await?);
    }
    Ok(figures)
}

/// Measures one load.
pub(crate) async fn of_load(
    frozen: &Server,
    unfrozen: &Server,
    load: &Load,
    rounds: usize,
) -> Outcome<Vec<Figure>> {
    let Load { state, mib, goals } = load;
    let mut figures = Vec::new();
    let sandbox = loaded(frozen, *mib).await?;
    let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        pauses.push(timed(pause(frozen, &sandbox)).await);
        resumes.push(timed(resume(frozen, &sandbox)).await);
    }
    figures.push(Figure::latency("pause, durable", state, goals.pause, &pauses));
    figures.push(Figure::latency("resume, processes frozen", state, goals.frozen, &resumes));

    let mut snapshots = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let snapshot = post(frozen, &sandbox, "snapshots", json!({})).await;
        snapshots.push(snapshot.is_ok().then(|| begun.elapsed()));
        taken.push(snapshot?["snapshotID"].as_str().unwrap_or_default().to_owned());
    }
    figures.push(Figure::latency("snapshot while running", state, "", &snapshots));
    let mut creates = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let created = frozen.http.create_from(&taken[0]).await?;
        let healthy = frozen.http.health(&created).await;
        creates.push(healthy.is_ok().then(|| begun.elapsed()));
        frozen.http.kill(&created).await?;
    }
    figures.push(Figure::latency("create from snapshot", state, "", &creates));
    for snapshot in taken {
        let path = format!("/templates/{}", snapshot.replace(':', "%3A"));
        frozen.http.api(Method::DELETE, &path, None, Value::Null).await?;
    }
    figures.push(forks(frozen, &sandbox, state, 1, rounds, goals.fork).await?);
    figures.push(forks(frozen, &sandbox, state, 10, rounds.div_ceil(4), goals.forks).await?);
    frozen.http.kill(&sandbox).await?;

    let sandbox = loaded(unfrozen, *mib).await?;
    let mut resumes = Vec::new();
    for _ in 0..rounds {
        pause(unfrozen, &sandbox).await?;
        resumes.push(timed(resume(unfrozen, &sandbox)).await);
    }
    figures.push(Figure::latency("resume, from disk", state, goals.unfrozen, &resumes));
    unfrozen.http.kill(&sandbox).await?;
    Ok(figures)
}

async fn forks(
    server: &Server,
    sandbox: &Sandbox,
    state: &str,
    count: usize,
    rounds: usize,
    goal: &str,
) -> Outcome<Figure> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let body = json!({ "timeout": 600, "count": count });
        let response = post(server, sandbox, "fork", body).await?;
        let forks: Vec<Sandbox> = response
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| serde_json::from_value(item["sandbox"].clone()).ok())
            .collect();
        times.push((forks.len() == count).then(|| begun.elapsed()));
        for fork in forks {
            server.http.kill(&fork).await?;
        }
    }
    Ok(Figure::latency(&format!("fork into {count}"), state, goal, &times))
}

/// Creates a sandbox in which Python holds this much memory.
async fn loaded(server: &Server, mib: usize) -> Outcome<Sandbox> {
    let sandbox = server.http.create().await?;
    if mib > 0 {
        let fill = format!(
            "setsid python3 -c \"import os, time; x = os.urandom({mib} << 20); open('/tmp/full', 'w').close(); \
             time.sleep(10 ** 6)\" >/dev/null 2>&1 & until [ -e /tmp/full ]; do sleep 0.05; done"
        );
        server.http.run(&sandbox, "/bin/bash", &["-c", &fill]).await?;
    }
    Ok(sandbox)
}

async fn pause(server: &Server, sandbox: &Sandbox) -> Outcome {
    post(server, sandbox, "pause", json!({})).await.map(|_| ())
}

/// Resumes a sandbox and waits until envd answers.
pub(crate) async fn resume(server: &Server, sandbox: &Sandbox) -> Outcome {
    post(server, sandbox, "connect", json!({ "timeout": 3600 })).await?;
    server.http.health(sandbox).await
}

pub(crate) async fn post(server: &Server, sandbox: &Sandbox, call: &str, body: Value) -> Outcome<Value> {
    server.http.api(Method::POST, &format!("/sandboxes/{}/{call}", sandbox.id), None, body).await
}

pub(crate) async fn timed(call: impl Future<Output = Outcome>) -> Option<Duration> {
    let begun = Instant::now();
    call.await.is_ok().then(|| begun.elapsed())
}
