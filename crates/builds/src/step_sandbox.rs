//! [`StepSandbox`]: the sandbox that a build step runs in. It starts from the layers so far and is thrown away afterwards; what it
//! changed becomes a layer. It has the template's size and the default egress policy, and no client can reach it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ids::{SandboxId, SnapshotId};
use layers::{LayerError, LayerStore, is_empty_layer};
use logs::{LineSplitter, LogLevel};
use store::BuildConfig;

use super::context::{BuildSandbox, BuildSandboxSpec, Command, Exit, Output, Purpose};
use super::{Builds, StepFailure};

/// Maximum duration of a script of ours.
const MAX_SCRIPT: Duration = Duration::from_secs(600);
/// Path of envd in every sandbox (`sandbox_setup::ENVD_PATH`, which needs the engines' crates).
const ENVD: &str = "/usr/bin/envd";
/// Maximum length of the reason why files could not be packed, bytes.
const MAX_REASON: usize = 4096;
/// Where the operator's certificate authorities are written; the directory is removed before a layer is made.
const CA_BUNDLE: &str = "/run/e2b/build-ca.crt";
/// Variables by which common programs find certificate authorities.
const CA_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];

/// A running step sandbox; dropping it kills it.
pub(crate) struct StepSandbox {
    sandbox: Box<dyn BuildSandbox>,
    /// Variables that make commands trust the operator's certificate authorities.
    trust: BTreeMap<String, String>,
}

impl StepSandbox {
    /// Waits for a place in the queue of starts, then starts a step sandbox.
    pub(crate) async fn start(builds: &Builds, spec: BuildSandboxSpec) -> Result<Self, StepFailure> {
        let is_for_layer = spec.purpose == Purpose::Layer;
        let sandbox = builds.context.start_sandbox(spec).await?;
        let mut started = Self { sandbox, trust: BTreeMap::new() };
        if let Some(pem) = builds.config.trusted_ca.as_deref().filter(|_| is_for_layer) {
            started.trust_authorities(pem).await?;
        }
        Ok(started)
    }

    /// Has commands trust the operator's certificate authorities by variables: changed files would stay in the template.
    async fn trust_authorities(&mut self, pem: &str) -> Result<(), StepFailure> {
        const WRITE: &str = r#"mkdir -p /run/e2b && {
            cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null; printf '%s\n' "$PEM"; } > "$BUNDLE""#;
        let written = self.script("/bin/sh", WRITE, &[("PEM", pem), ("BUNDLE", CA_BUNDLE)], |_| {}).await;
        written
            .map_err(|StepFailure(reason)| StepFailure::new(format!("Failed to place sandbox: {reason}")))?;
        self.trust = CA_VARIABLES.map(|name| (name.to_owned(), CA_BUNDLE.to_owned())).into();
        Ok(())
    }

    /// Returns a command's environment variables, with the variables added that make it trust the operator's certificate authorities.
    pub(crate) fn with_trust(&self, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.trust.iter().chain(env).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    pub(crate) fn id(&self) -> &SandboxId {
        self.sandbox.id()
    }

    /// Runs a command; calls `line` with each line of output and whether it went to standard error.
    pub(crate) async fn run(
        &self,
        command: &Command<'_>,
        mut line: impl FnMut(bool, &str) + Send,
    ) -> Result<Exit, StepFailure> {
        let (mut out, mut err) = (LineSplitter::default(), LineSplitter::default());
        let mut split = |output: Output<'_>| match output {
            Output::Stdout(chunk) => out.push(chunk, |text| line(false, text)),
            Output::Stderr(chunk) => err.push(chunk, |text| line(true, text)),
        };
        let exit = self.sandbox.run(command, &mut split).await;
        out.finish(|text| line(false, text));
        err.finish(|text| line(true, text));
        exit
    }

    /// Runs a script of ours as root with `shell` and these variables. If it fails, the failure is its last line on standard
    /// error, or else its exit status.
    pub(crate) async fn script(
        &self,
        shell: &str,
        script: &str,
        variables: &[(&str, &str)],
        mut line: impl FnMut(&str) + Send,
    ) -> Result<(), StepFailure> {
        let env: BTreeMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = self.with_trust(&env);
        let command = Command {
            program: shell,
            args: &["-c", script],
            user: "root",
            cwd: Some("/"),
            env: &env,
            limit: Some(MAX_SCRIPT),
        };
        let mut last = String::new();
        let exit = self.run(&command, |is_error, text| {
            line(text);
            if is_error && !text.trim().is_empty() {
                text.trim().clone_into(&mut last);
            }
        });
        let exit = exit.await?;
        if exit.is_success() {
            return Ok(());
        }
        Err(StepFailure::new(if last.is_empty() { exit.status } else { last }))
    }

    /// Copies a file of the host into the sandbox, as root.
    pub(crate) async fn upload(&self, from: &Path, to: &str) -> Result<(), StepFailure> {
        self.sandbox.upload("root", from, to).await
    }

    /// Passes on an archive of the files that `from`, a path or pattern, names. Needs no program in the sandbox but envd.
    pub(crate) async fn pack(
        &self,
        from: &str,
        write: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
    ) -> Result<(), StepFailure> {
        let env = BTreeMap::new();
        let command = Command {
            program: ENVD,
            args: &["pack", from],
            user: "root",
            cwd: Some("/"),
            env: &env,
            limit: Some(MAX_SCRIPT),
        };
        let (mut reason, mut failure) = (Vec::new(), None);
        let mut collect = |output: Output<'_>| match output {
            Output::Stdout(chunk) if failure.is_none() => failure = write(chunk).err(),
            Output::Stdout(_) => {}
            Output::Stderr(chunk) => {
                reason.extend_from_slice(&chunk[..chunk.len().min(MAX_REASON - reason.len())]);
            }
        };
        let exit = self.sandbox.run(&command, &mut collect).await?;
        match failure {
            Some(error) => Err(error.into()),
            None if exit.is_success() => Ok(()),
            None => Err(StepFailure::new(format!("COPY: {}", String::from_utf8_lossy(&reason).trim()))),
        }
    }

    /// Returns the variables that a user's processes have by default.
    pub(crate) async fn variables(&self, user: &str) -> Result<BTreeMap<String, String>, StepFailure> {
        let mut printed = Vec::new();
        let (env, args) = (BTreeMap::new(), ["-c", "env -0"]);
        let command = Command {
            program: "/bin/sh",
            args: &args,
            user,
            cwd: Some("/"),
            env: &env,
            limit: Some(MAX_SCRIPT),
        };
        let mut collect = |output: Output<'_>| {
            if let Output::Stdout(chunk) = output {
                printed.extend_from_slice(chunk);
            }
        };
        self.sandbox.run(&command, &mut collect).await?;
        let text = String::from_utf8_lossy(&printed);
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Makes a layer of the files that the sandbox changed, on top of the layers `below`, and kills the sandbox. Returns all layers,
    /// uppermost first; returns `below` if nothing was changed.
    pub(crate) async fn into_layers(
        self,
        store: &LayerStore,
        below: &[String],
    ) -> Result<Vec<String>, StepFailure> {
        // What envd keeps there belongs to this sandbox and not to the template.
        self.script("/bin/sh", "rm -rf /run/e2b", &[], |_| {}).await?;
        let staging = Arc::new(store.stage()?);
        self.sandbox.export_layer(&staging.path()).await?;
        self.sandbox.kill().await;
        let (store, mut layers) = (store.clone(), below.to_vec());
        let added = tokio::task::spawn_blocking(move || {
            let tree = staging.path();
            // Left by the removal above in an otherwise unchanged sandbox; fails when it is not empty.
            let _ = fs::remove_dir(tree.join("run"));
            if !is_empty_layer(&tree)? {
                layers.insert(0, store.add_on(&staging, &layers)?.to_string());
            }
            Ok::<_, LayerError>(layers)
        });
        Ok(added.await.map_err(|_| StepFailure::new("the layer's task ended abnormally"))??)
    }

    /// Runs the template's start command until it is ready.
    pub(crate) async fn run_start_command(
        &self,
        config: &BuildConfig,
        log: &(dyn Fn(LogLevel, String) + Sync),
    ) -> Result<(), StepFailure> {
        self.sandbox.run_start_command(config, log).await
    }

    /// Captures it with its memory as a warm start, and kills it.
    pub(crate) async fn into_warm_start(self) -> Result<SnapshotId, StepFailure> {
        let snapshot = self.sandbox.capture().await.map_err(|StepFailure(error)| {
            StepFailure::new(format!("the running template could not be captured: {error}"))
        })?;
        self.sandbox.kill().await;
        Ok(snapshot)
    }
}
