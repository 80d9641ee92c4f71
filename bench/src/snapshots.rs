//! What it costs to capture a sandbox and to bring it back: idle, and with Python holding 50 and 300 MiB.
//! Each measurement ends when the sandbox answers again (or, for a pause, when the call does).
//! The memory is random, so that nothing is saved by zeroes.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::Outcome;
use crate::figures::Figure;
use crate::http::Sandbox;
use crate::server::Server;

/// What runs in the measured sandbox.
const LOADS: [Load; 3] = [
    Load { state: "idle", mib: 0, goals: NONE },
    Load { state: "Python with 50 MiB", mib: 50, goals: DESIGN },
    Load { state: "Python with 300 MiB", mib: 300, goals: NONE },
];

/// A sandbox to be measured.
pub(crate) struct Load {
    pub(crate) state: &'static str,
    /// Of random memory.
    pub(crate) mib: usize,
    pub(crate) goals: Goals,
}

/// Calls and their goals: the design's are for 50 MiB.
pub(crate) struct Goals {
    pub(crate) pause: &'static str,
    pub(crate) hot: &'static str,
    pub(crate) cold: &'static str,
    pub(crate) fork: &'static str,
    pub(crate) forks: &'static str,
}

const DESIGN: Goals = Goals { pause: "120", hot: "5", cold: "100", fork: "150", forks: "500" };
const NONE: Goals = Goals { pause: "", hot: "", cold: "", fork: "", forks: "" };

/// Everything, for every load. `hot` keeps paused sandboxes in memory, `cold` does not.
pub(crate) async fn all(hot: &Server, cold: &Server, rounds: usize) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    for load in LOADS {
        figures.extend(of_load(hot, cold, &load, rounds).await?);
    }
    Ok(figures)
}

/// Everything for one load.
pub(crate) async fn of_load(hot: &Server, cold: &Server, load: &Load, rounds: usize) -> Outcome<Vec<Figure>> {
    let Load { state, mib, goals } = load;
    let mut figures = Vec::new();
    let sandbox = loaded(hot, *mib).await?;
    let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        pauses.push(timed(pause(hot, &sandbox)).await);
        resumes.push(timed(resume(hot, &sandbox)).await);
    }
    figures.push(Figure::latency("pause, durable", state, goals.pause, &pauses));
    figures.push(Figure::latency("resume, kept in memory", state, goals.hot, &resumes));

    let mut snapshots = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let snapshot = post(hot, &sandbox, "snapshots", json!({})).await;
        snapshots.push(snapshot.is_ok().then(|| begun.elapsed()));
        taken.push(snapshot?["snapshotID"].as_str().unwrap_or_default().to_owned());
    }
    figures.push(Figure::latency("snapshot while running", state, "", &snapshots));
    let mut creates = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let created = hot.http.create_from(&taken[0]).await?;
        let answered = hot.http.health(&created).await;
        creates.push(answered.is_ok().then(|| begun.elapsed()));
        hot.http.kill(&created).await?;
    }
    figures.push(Figure::latency("create from snapshot", state, "", &creates));
    for snapshot in taken {
        let path = format!("/templates/{}", snapshot.replace(':', "%3A"));
        hot.http.api(Method::DELETE, &path, None, Value::Null).await?;
    }
    figures.push(forks(hot, &sandbox, state, 1, rounds, goals.fork).await?);
    figures.push(forks(hot, &sandbox, state, 10, rounds.div_ceil(4), goals.forks).await?);
    hot.http.kill(&sandbox).await?;

    let sandbox = loaded(cold, *mib).await?;
    let mut resumes = Vec::new();
    for _ in 0..rounds {
        pause(cold, &sandbox).await?;
        resumes.push(timed(resume(cold, &sandbox)).await);
    }
    figures.push(Figure::latency("resume, from disk", state, goals.cold, &resumes));
    cold.http.kill(&sandbox).await?;
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
        let answer = post(server, sandbox, "fork", body).await?;
        let forks: Vec<Sandbox> = answer
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

/// A sandbox in which Python has filled so much memory.
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

/// Until it answers.
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
