//! A sandbox that a step is carried out in: started from the layers so far, thrown away afterwards; what it changed becomes a layer.
//! It is like any sandbox, with the template's processors and memory and the way out that sandboxes have by default.
//! Nobody can reach it from outside: it is in no table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use engine::{Durability, Sandbox as EngineSandbox};
use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use layers::{LayerError, LayerStore, is_empty_layer};
use serde::{Deserialize, Serialize};
use store::BuildConfig;
use telemetry::CaptureKind;

use super::failure::Failure;
use super::log::LineCutter;
use crate::envd::{self, Command, End, EnvdError, Output};
use crate::sandboxes::launch::{Boot, DiscardOnDrop, Origin, start_error};
use crate::{Control, ControlError};

/// Size of a template's sandboxes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) cpu_count: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: u32,
}

/// What a machine is made for.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) team: TeamId,
    pub(crate) template: &'a TemplateId,
    pub(crate) size: Size,
    pub(crate) layers: &'a [String],
    pub(crate) origin: Origin,
    /// Defaults of its processes.
    pub(crate) config: BuildConfig,
    /// Whether a layer will be made of it, or else a captured sandbox.
    pub(crate) for_a_layer: bool,
}

/// A running one. Dropping it ends it.
pub(crate) struct Machine {
    id: SandboxId,
    token: String,
    sandbox: DiscardOnDrop,
    /// Variables by which commands trust the operator's authorities.
    trust: BTreeMap<String, String>,
}

/// What it takes to run commands in a sandbox.
#[derive(Clone, Copy)]
pub(crate) struct Hands<'a> {
    pub(crate) sandbox: &'a dyn EngineSandbox,
    pub(crate) token: &'a str,
}

impl Hands<'_> {
    pub(crate) async fn run(
        self,
        command: &Command<'_>,
        mut line: impl FnMut(bool, &str) + Send,
    ) -> Result<End, EnvdError> {
        let (mut out, mut err) = (LineCutter::default(), LineCutter::default());
        let end = envd::run(self.sandbox, self.token, command, |output| match output {
            Output::Stdout(piece) => out.push(piece, |text| line(false, text)),
            Output::Stderr(piece) => err.push(piece, |text| line(true, text)),
        })
        .await;
        out.finish(|text| line(false, text));
        err.finish(|text| line(true, text));
        end
    }
}

/// Longest run of what we do ourselves in a machine.
const OWN_LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

impl Machine {
    /// Starts one, in its turn.
    pub(crate) async fn start(control: &Control, plan: Plan<'_>) -> Result<Self, ControlError> {
        let id = SandboxId::generate();
        let boot = Boot {
            id: id.clone(),
            team: plan.team,
            template: plan.template.clone(),
            layers: plan.layers.to_vec(),
            env: Some(plan.config.env.clone()),
            config: plan.config,
            cpu_count: plan.size.cpu_count,
            memory_mib: plan.size.memory_mib,
            disk_mib: plan.size.disk_mib,
            egress: net::EgressPolicy::default(),
            origin: plan.origin,
            trusts: !plan.for_a_layer,
        };
        // Not within the time of a start: some engines make a disk of new layers.
        let image = control.image(&boot.layers, boot.config.engine.as_deref());
        control.engine.prepare(&image, boot.trusts).await.map_err(start_error)?;
        let turn = control.starts.join()?.turn().await?;
        let sandbox = DiscardOnDrop::new(control.boot(&boot).await?, &control.tasks);
        drop(turn);
        let mut machine = Self { token: control.tokens.envd(&id), id, sandbox, trust: BTreeMap::new() };
        if let Some(pem) = control.config.trusted_ca.as_deref().filter(|_| plan.for_a_layer) {
            machine.trust(pem).await?;
        }
        Ok(machine)
    }

    /// Has commands trust the operator's authorities by variables, since files would stay in the template. They are in a directory
    /// that is removed before a layer is made.
    async fn trust(&mut self, pem: &str) -> Result<(), ControlError> {
        const BUNDLE: &str = "/run/e2b/build-ca.crt";
        const WRITE: &str = r#"mkdir -p /run/e2b && {
            cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null; printf '%s\n' "$PEM"; } > "$BUNDLE""#;
        let written = self.script("/bin/sh", WRITE, &[("PEM", pem), ("BUNDLE", BUNDLE)], |_| {}).await;
        written.map_err(|Failure(reason)| ControlError::StartFailed(reason))?;
        let names = [
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "PIP_CERT",
            "NODE_EXTRA_CA_CERTS",
            "GIT_SSL_CAINFO",
            "CARGO_HTTP_CAINFO",
        ];
        self.trust = names.map(|name| (name.to_owned(), BUNDLE.to_owned())).into();
        Ok(())
    }

    /// A command's variables with those that make it trust what the operator does.
    pub(crate) fn trusting(&self, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        self.trust.iter().chain(env).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    pub(crate) fn sandbox(&self) -> &dyn EngineSandbox {
        self.sandbox.get()
    }

    pub(crate) fn hands(&self) -> Hands<'_> {
        Hands { sandbox: self.sandbox(), token: &self.token }
    }

    /// Runs a command; each line it prints is handed on, with whether it went to standard error.
    pub(crate) async fn run(
        &self,
        command: &Command<'_>,
        line: impl FnMut(bool, &str) + Send,
    ) -> Result<End, EnvdError> {
        self.hands().run(command, line).await
    }

    /// Runs a script of ours as root with `shell`, told what to do by variables. Its last words are the failure's.
    pub(crate) async fn script(
        &self,
        shell: &str,
        script: &str,
        variables: &[(&str, &str)],
        mut line: impl FnMut(&str) + Send,
    ) -> Result<(), Failure> {
        let env: BTreeMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = self.trusting(&env);
        let command = Command {
            program: shell,
            args: &["-c", script],
            user: "root",
            cwd: Some("/"),
            env: &env,
            limit: Some(OWN_LIMIT),
        };
        let mut last = String::new();
        let end = self.run(&command, |is_error, text| {
            line(text);
            if is_error && !text.trim().is_empty() {
                text.trim().clone_into(&mut last);
            }
        });
        let end = end.await?;
        if end.is_success() {
            return Ok(());
        }
        Err(Failure::new(if last.is_empty() { end.status } else { last }))
    }

    /// Copies a file of the host's into it, as root.
    pub(crate) async fn upload(&self, from: &Path, to: &str) -> Result<(), EnvdError> {
        envd::upload(self.sandbox(), &self.token, "root", from, to).await
    }

    /// The variables its processes have by themselves.
    pub(crate) async fn variables(&self, user: &str) -> Result<BTreeMap<String, String>, Failure> {
        let mut printed = Vec::new();
        let (env, args) = (BTreeMap::new(), ["-c", "env -0"]);
        let command = Command {
            program: "/bin/sh",
            args: &args,
            user,
            cwd: Some("/"),
            env: &env,
            limit: Some(OWN_LIMIT),
        };
        envd::run(self.sandbox(), &self.token, &command, |output| {
            if let Output::Stdout(piece) = output {
                printed.extend_from_slice(piece);
            }
        })
        .await?;
        let text = String::from_utf8_lossy(&printed);
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Makes of what was changed a layer to lie on those below, and ends it. Answers them all, uppermost first.
    pub(crate) async fn into_layers(
        self,
        store: &LayerStore,
        below: &[String],
    ) -> Result<Vec<String>, Failure> {
        // What envd was told about this very sandbox is not the template's.
        self.script("/bin/sh", "rm -rf /run/e2b", &[], |_| {}).await?;
        let staging = Arc::new(store.stage()?);
        self.sandbox()
            .export_layer(&staging.path())
            .await
            .map_err(|error| Failure::new(error.to_string()))?;
        self.end().await;
        let (store, mut layers) = (store.clone(), below.to_vec());
        let added = tokio::task::spawn_blocking(move || {
            let tree = staging.path();
            // What is left of the above in an otherwise untouched sandbox.
            let _ = fs::remove_dir(tree.join("run"));
            if !is_empty_layer(&tree)? {
                layers.insert(0, store.add_on(&staging, &layers)?.to_string());
            }
            Ok::<_, LayerError>(layers)
        });
        Ok(added.await.map_err(|_| Failure::new("the layer's task ended abnormally"))??)
    }

    /// Captures it with its memory under a new id, and ends it.
    pub(crate) async fn into_warm_state(self) -> Result<SnapshotId, Failure> {
        let state = SnapshotId::generate();
        let timer = telemetry::capture_timer(CaptureKind::Template);
        let captured = self.sandbox().capture(state, true, Durability::Durable).await;
        captured
            .map_err(|error| Failure::new(format!("the running template could not be captured: {error}")))?;
        timer.succeeded();
        self.end().await;
        Ok(state)
    }

    /// Ends it and waits for that, so that its files are gone when the next one starts.
    async fn end(&self) {
        if let Err(error) = self.sandbox().kill().await {
            tracing::warn!(sandbox_id = %self.id, %error, "a build's sandbox could not be ended cleanly");
        }
    }
}
