//! The measurements, one function each.
//! Latencies are taken one after the other unless the name says otherwise; every sandbox is killed again.
//! Goals are those of the design.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;

use crate::Outcome;
use crate::figures::{Figure, ratio};
use crate::host::available_mib;
use crate::server::Server;

/// The time of a create: when it returns, envd has answered.
pub(crate) async fn create(
    server: &Server,
    rounds: usize,
    name: &str,
    state: &str,
    goal: &str,
) -> Outcome<Figure> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let created = server.http.create().await;
        times.push(created.is_ok().then(|| begun.elapsed()));
        server.http.kill(&created?).await?;
    }
    Ok(Figure::latency(name, state, goal, &times))
}

/// Time to interactive: create, then the output of a first command.
pub(crate) async fn first_output(server: &Server, rounds: usize, state: &str, goal: &str) -> Outcome<Figure> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let sandbox = server.http.create().await?;
        let output = server.http.run(&sandbox, "/bin/echo", &["hello"]).await;
        times.push(output.is_ok_and(|text| text == b"hello\n").then(|| begun.elapsed()));
        server.http.kill(&sandbox).await?;
    }
    Ok(Figure::latency("create to first output (TTI)", state, goal, &times))
}

/// The time of a kill: when it returns, everything of the sandbox is gone.
pub(crate) async fn kill(server: &Server, rounds: usize) -> Outcome<Figure> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let sandbox = server.http.create().await?;
        let begun = Instant::now();
        times.push(server.http.kill(&sandbox).await.is_ok().then(|| begun.elapsed()));
    }
    Ok(Figure::latency("kill", "", "", &times))
}

/// A command that does nothing, in a running sandbox.
pub(crate) async fn exec(server: &Server, rounds: usize) -> Outcome<Figure> {
    let sandbox = server.http.create().await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        times.push(server.http.run(&sandbox, "/bin/true", &[]).await.is_ok().then(|| begun.elapsed()));
    }
    server.http.kill(&sandbox).await?;
    Ok(Figure::latency("exec of /bin/true", "connection kept", "2 / 6", &times))
}

/// envd's response time while 20 processes in the sandbox use up its processors.
pub(crate) async fn under_load(server: &Server, rounds: usize) -> Outcome<Figure> {
    let sandbox = server.http.create().await?;
    let hogs = "for i in $(seq 20); do (while :; do :; done) >/dev/null 2>&1 & done";
    server.http.run(&sandbox, "/bin/bash", &["-c", hogs]).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        times.push(server.http.health(&sandbox).await.is_ok().then(|| begun.elapsed()));
    }
    server.http.kill(&sandbox).await?;
    Ok(Figure::latency("envd answers while 20 processes spin inside", "connection kept", "100", &times))
}

/// Sleeps for five milliseconds at a time, ten seconds long; prints by how much the longest sleep was late, in milliseconds.
const SLEEPER: &str = "
import time
end, worst = time.monotonic() + 10, 0
while time.monotonic() < end:
    began = time.monotonic()
    time.sleep(0.005)
    worst = max(worst, time.monotonic() - began - 0.005)
print(worst * 1000)
";

/// How late a neighbour of a fork bomb wakes up from a short sleep, at worst.
pub(crate) async fn beside_a_fork_bomb(server: &Server) -> Outcome<Figure> {
    let (bomber, neighbour) = (server.http.create().await?, server.http.create().await?);
    let bomb = "(bomb() { bomb | bomb & }; bomb; sleep 100) >/dev/null 2>&1 &";
    server.http.run(&bomber, "/bin/bash", &["-c", bomb]).await?;
    let worst = server.http.run(&neighbour, "/usr/bin/python3", &["-c", SLEEPER]).await?;
    for sandbox in [bomber, neighbour] {
        server.http.kill(&sandbox).await?;
    }
    let worst: f64 = String::from_utf8(worst)?.trim().parse()?;
    Ok(Figure::single(
        "a fork bomb's neighbour sleeps too long by, at worst",
        "5 ms sleeps",
        "ms",
        "100",
        worst,
        1.0,
    ))
}

/// Creates that are requested at the same moment.
pub(crate) async fn burst(server: &Server, count: usize, state: &str, goal: &str) -> Outcome<Vec<Figure>> {
    let begun = Instant::now();
    let one = || async {
        let created = server.http.create().await;
        (created, begun.elapsed())
    };
    let created = join_all((0..count).map(|_| one())).await;
    let all = begun.elapsed();
    let times: Vec<Option<Duration>> =
        created.iter().map(|(created, time)| created.is_ok().then_some(*time)).collect();
    let success = ratio(times.iter().flatten().count(), count);
    for (sandbox, _) in created {
        server.http.kill(&sandbox?).await?;
    }
    let wall = all.as_secs_f64() * 1000.0;
    Ok(vec![
        Figure::single(&format!("{count} creates at once, all ready"), state, "ms", goal, wall, success),
        Figure::latency(&format!("each of {count} at once"), state, "", &times),
    ])
}

/// Upload and download of a large file through the edge.
pub(crate) async fn files(server: &Server, mib: usize) -> Outcome<Vec<Figure>> {
    const ROUNDS: usize = 5;
    let sandbox = server.http.create().await?;
    let content = Bytes::from(vec![7u8; mib << 20]);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        server.http.upload(&sandbox, "/home/user/big", content.clone()).await?;
        up.push(begun.elapsed());
        let begun = Instant::now();
        let size = server.http.download(&sandbox, "/home/user/big").await?;
        assert_eq!(size, content.len(), "a download came short");
        down.push(begun.elapsed());
    }
    server.http.kill(&sandbox).await?;
    let rate = |mut times: Vec<Duration>| {
        times.sort_unstable();
        ratio(mib, 1024) / times[ROUNDS / 2].as_secs_f64()
    };
    Ok(vec![
        Figure::single(&format!("upload of {mib} MiB, median of {ROUNDS}"), "", "GiB/s", "1", rate(up), 1.0),
        Figure::single(
            &format!("download of {mib} MiB, median of {ROUNDS}"),
            "page cache",
            "GiB/s",
            "1",
            rate(down),
            1.0,
        ),
    ])
}

/// Memory per idle sandbox at several counts, and what a create costs at the last.
pub(crate) async fn alive(server: &Server, counts: &[usize]) -> Outcome<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut sandboxes = Vec::new();
    let before = available_mib();
    for count in counts {
        let mut times = Vec::new();
        while sandboxes.len() < *count {
            let begun = Instant::now();
            let created = server.http.create().await;
            times.push(created.is_ok().then(|| begun.elapsed()));
            sandboxes.extend(created);
            if times.len() > 2 * count {
                return Err("creates keep failing".into());
            }
        }
        let each = (before - available_mib()) * ratio(1, *count);
        let success = ratio(times.iter().flatten().count(), times.len());
        let name = format!("idle MemAvailable delta each, {count} alive");
        figures.push(Figure::single(&name, "slots included", "MiB", "1", each, success));
        let last = &times[times.len().saturating_sub(100)..];
        let name = format!("create to ready, last {} of {count} alive", last.len());
        figures.push(Figure::latency(&name, "slots ready", "10", last));
    }
    for sandbox in sandboxes {
        server.http.kill(&sandbox).await?;
    }
    Ok(figures)
}
