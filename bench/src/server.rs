//! A server for the measurements: fresh data directory, free port, stopped with its sandboxes at the end, also when a measurement fails.
//! The data directory is beside the build, on a real disk, as a user's would be.
//! The first key is made through the admin interface.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Http;
use crate::{Arguments, Outcome};

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// `None` once it was stopped.
    child: Option<Child>,
    data: TempDir,
    pub(crate) http: Http,
}

impl Server {
    /// Starts a server that keeps this many slots prepared.
    pub(crate) async fn start(arguments: &Arguments, slots: usize) -> Outcome<Self> {
        Self::start_with(arguments, slots, &[]).await
    }

    /// Starts a server with further options.
    pub(crate) async fn start_with(arguments: &Arguments, slots: usize, options: &[&str]) -> Outcome<Self> {
        let data = TempDir::new_in("target")?;
        let mut command = Command::new(&arguments.server);
        command
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--max-sandboxes", "5000"])
            // No pre-started sandboxes: each create is measured whole.
            .args(["--slots", &slots.to_string(), "--pool", "0", "--sandbox-ca", "none"])
            .args(options)
            .arg("--layers-dir")
            .arg(&arguments.layers)
            .arg("--data-dir")
            .arg(data.path())
            .env("COFFERDAM_LOG", "warn")
            .arg("--criu")
            .arg(&arguments.criu)
            .stdout(Stdio::piped())
            // A terminal's interrupt is for us alone: we still need the server, to kill its sandboxes.
            .process_group(0);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        // From here on dropping it stops it.
        let mut server = Self { child: Some(child), data, http: Http::new(String::new()) };
        let line = BufReader::new(output).lines().next().ok_or("the server did not start")??;
        let url = line.strip_prefix("listening on ").ok_or("an unknown first line")?.to_owned();
        server.http = Http::new(url);
        let token = std::fs::read_to_string(server.data.path().join("admin-token"))?;
        let teams = server.http.api(Method::GET, "/teams", Some(&token), Value::Null).await?;
        let path = format!("/admin/teams/{}/api-keys", teams[0]["teamID"].as_str().unwrap_or_default());
        let key = server.http.api(Method::POST, &path, Some(&token), json!({ "name": "bench" })).await?;
        server.http = server.http.clone().with_key(key["key"].as_str().unwrap_or_default().to_owned());
        Ok(server)
    }

    /// The engine's name and its description of the isolation.
    pub(crate) async fn engine(&self) -> Outcome<String> {
        let engine = self.http.api(Method::GET, "/cofferdam/v1/engine", None, Value::Null).await?;
        Ok(format!(
            "{}: {}",
            engine["name"].as_str().unwrap_or("?"),
            engine["summary"].as_str().unwrap_or("?")
        ))
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Kills its sandboxes, stops it and waits for its end.
    pub(crate) async fn stop(mut self) -> Outcome {
        let Some(child) = self.child.take() else { return Ok(()) };
        stop(&self.http, child).await
    }
}

impl Drop for Server {
    /// Stops a server whose measurement failed.
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        // A runtime cannot be blocked from within, so this takes a thread and a runtime (with connections) of its own.
        let http = self.http.reconnecting();
        let stopping = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stop(&http, child))
        };
        match thread::spawn(stopping).join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("cannot stop a server: {error}"),
            Err(_) => eprintln!("cannot stop a server: its thread panicked"),
        }
    }
}

/// Kills a server's sandboxes, which would outlive it, and ends the server.
async fn stop(http: &Http, mut child: Child) -> Outcome {
    let killed = http.kill_all().await;
    Command::new("kill").arg(child.id().to_string()).status()?;
    child.wait()?;
    killed
}
