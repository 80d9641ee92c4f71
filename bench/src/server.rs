//! A server of our own for the measurements: fresh data directory, free port, ended at the end.
//! The data directory lies beside the build, on a real disk, as a user's would.
//! The first key is made through the admin interface.

use std::path::Path;
use std::process::Stdio;

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::Outcome;
use crate::http::Http;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    data: TempDir,
    pub(crate) http: Http,
}

impl Server {
    /// Starts one with this many slots kept ready.
    pub(crate) async fn start(binary: &Path, layers: &Path, pool: usize) -> Outcome<Self> {
        Self::start_with(binary, layers, pool, &[]).await
    }

    /// Starts one with further options.
    pub(crate) async fn start_with(
        binary: &Path,
        layers: &Path,
        pool: usize,
        options: &[&str],
    ) -> Outcome<Self> {
        let data = TempDir::new_in("target")?;
        let mut child = Command::new(binary)
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--max-sandboxes", "5000"])
            // No sandboxes wait for their creators: each create is measured whole.
            .args(["--slots", &pool.to_string(), "--pool", "0"])
            .args(options)
            .arg("--layers-dir")
            .arg(layers)
            .arg("--data-dir")
            .arg(data.path())
            .env("COFFERDAM_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let line = BufReader::new(output).lines().next_line().await?.ok_or("the server did not start")?;
        let url = line.strip_prefix("listening on ").ok_or("an unknown first line")?.to_owned();
        let token = std::fs::read_to_string(data.path().join("admin-token"))?;
        let http = Http::new(url);
        let teams = http.api(Method::GET, "/teams", Some(&token), Value::Null).await?;
        let path = format!("/admin/teams/{}/api-keys", teams[0]["teamID"].as_str().unwrap_or_default());
        let key = http.api(Method::POST, &path, Some(&token), json!({ "name": "bench" })).await?;
        let http = http.with_key(key["key"].as_str().unwrap_or_default().to_owned());
        Ok(Self { child, data, http })
    }

    /// The engine's name and what it says of its isolation.
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

    /// Ends it and waits.
    pub(crate) async fn stop(mut self) -> Outcome {
        if let Some(pid) = self.child.id() {
            Command::new("kill").arg(pid.to_string()).status().await?;
        }
        self.child.wait().await?;
        self.data.close()?;
        Ok(())
    }
}
