//! Finishes a build: makes the last layer and, for templates with a start command, the warm start. For the warm start, a sandbox runs
//! the start command and is captured with its memory once the ready command succeeds. Sandboxes of the template are restored from it.
//! If the engine cannot take memory snapshots, each create runs the start command and waits until it is ready.

use logs::LogLevel;
use store::{BuildConfig, BuildSnapshot, RunContext};
use template::steps::{Context, scripts};

use super::StepFailure;
use super::cache::Progress;
use super::context::{BuildSandboxSpec, Purpose};
use super::spec::{BuildRules, BuildSpec};
use super::step_sandbox::StepSandbox;
use super::task::BuildTask;

/// Result of a build.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Layer digests, uppermost first.
    pub(crate) layers: Vec<String>,
    pub(crate) config: BuildConfig,
    /// The warm start.
    pub(crate) snapshot: Option<BuildSnapshot>,
}

/// Finishes a build. `inherited` is the configuration of the template that the build started from.
pub(crate) async fn finalize(
    task: &BuildTask,
    end: Progress,
    inherited: BuildConfig,
) -> Result<Finished, StepFailure> {
    task.log(LogLevel::Info, "finalize", "[finalize] Finalizing template build");
    let sandbox = StepSandbox::start(&task.builds, task.sandbox_spec(&end.layers)).await?;
    let (template, build) = (task.record.template.to_string(), task.record.id.to_string());
    let path = end.context.env.get("PATH").map_or("", String::as_str);
    let variables = [("TEMPLATE_ID", template.as_str()), ("BUILD_ID", &build), ("TEMPLATE_PATH", path)];
    let log = |text: &str| task.log(LogLevel::Debug, "finalize", format!("[finalize] {text}"));
    sandbox.script("/bin/bash", scripts::FINALIZE, &variables, log).await?;
    let layers = sandbox.into_layers(&task.layers, &end.layers).await?;
    let config = template_config(task, end.context, inherited);
    let has_commands = config.start_cmd.is_some() || config.ready_cmd.is_some();
    let snapshot = if has_commands { start_and_capture(task, &layers, &config).await? } else { None };
    Ok(Finished { layers, config, snapshot })
}

/// Starts a sandbox of the finished template, checks that its commands succeed, and captures it as the warm start if the engine can.
async fn start_and_capture(
    task: &BuildTask,
    layers: &[String],
    config: &BuildConfig,
) -> Result<Option<BuildSnapshot>, StepFailure> {
    let spec =
        BuildSandboxSpec { config: config.clone(), purpose: Purpose::WarmStart, ..task.sandbox_spec(layers) };
    let sandbox = StepSandbox::start(&task.builds, spec).await?;
    let log = |level, text: String| task.log(level, "finalize", text);
    sandbox.run_start_command(config, &log).await?;
    let engines = task.builds.context.engines();
    let named = engines.iter().find(|engine| Some(engine.name) == config.engine.as_deref());
    let has_memory_snapshots =
        named.or(engines.first()).is_some_and(|engine| engine.capabilities.memory_snapshots);
    if config.start_cmd.is_none() || !has_memory_snapshots {
        return Ok(None);
    }
    let captured_from = sandbox.id().clone();
    let id = sandbox.into_warm_start().await?;
    let base = task.record.template.clone();
    Ok(Some(BuildSnapshot { id, memory: true, sandbox: captured_from, base, warm_start: true }))
}

/// Returns the template's configuration. If the build has a start or ready command, both inherited commands are dropped.
fn template_config(task: &BuildTask, context: Context, inherited: BuildConfig) -> BuildConfig {
    let BuildSpec { start_cmd, ready_cmd, rules, .. } = &task.spec;
    let has_own = start_cmd.is_some() || ready_cmd.is_some();
    // The worker has set it to the inherited engine if the build names none.
    let engine = task.spec.engine.clone();
    let mut config = if has_own {
        BuildConfig { start_cmd: start_cmd.clone(), ready_cmd: ready_cmd.clone(), ..BuildConfig::default() }
    } else {
        let has_any = inherited.start_cmd.is_some() || inherited.ready_cmd.is_some();
        let start_context = inherited.start_context.filter(|_| has_any);
        let BuildConfig { start_cmd, ready_cmd, .. } = inherited;
        BuildConfig { start_cmd, ready_cmd, start_context, ..BuildConfig::default() }
    };
    if *rules == BuildRules::BeforeDefaultUser {
        if has_own {
            let Context { user, workdir, env } = context.clone();
            config.start_context = Some(RunContext { user, workdir, env });
        }
        let default_user = Some("user".to_owned());
        return BuildConfig { default_user, default_workdir: None, env: context.env, engine, ..config };
    }
    let Context { user, workdir, env } = context;
    BuildConfig { default_user: Some(user), default_workdir: workdir, env, engine, ..config }
}
