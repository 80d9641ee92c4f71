//! The end of a build: the last layer, and for templates with a start command the sandbox in which it runs, captured once it is
//! ready. Sandboxes of the template go on from there, with the service up.
//! Where memory cannot be captured, each create starts the command and waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use ids::SnapshotId;
use store::{BuildConfig, BuildSnapshot, RunContext};
use template::steps::{Context, scripts};
use tokio::time::Instant;

use super::cache::Progress;
use super::failure::Failure;
use super::machine::{Hands, Machine, Plan};
use super::perform::arguments;
use super::start::{BuildRules, BuildSpec};
use super::worker::Work;
use crate::LogLevel;
use crate::envd::Command;

/// Longest wait for the ready command's success.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// Between two asks: short at first, the contract's two seconds later.
const ASK_SOON: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(2);
/// What stands for a missing ready command.
const SETTLE: &str = "sleep 20";

/// What a finished template consists of.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) layers: Vec<String>,
    pub(crate) config: BuildConfig,
    pub(crate) snapshot: Option<BuildSnapshot>,
}

/// Finishes a build.
pub(crate) async fn finalize(
    work: &Work,
    end: Progress,
    inherited: BuildConfig,
) -> Result<Finished, Failure> {
    work.say(LogLevel::Info, "finalize", "[finalize] Finalizing template build");
    let machine = Machine::start(&work.control, work.plan(&end.layers)).await?;
    let (template, build) = (work.build.template.to_string(), work.build.id.to_string());
    let path = end.context.env.get("PATH").map_or("", String::as_str);
    let variables = [("TEMPLATE_ID", template.as_str()), ("BUILD_ID", &build), ("TEMPLATE_PATH", path)];
    let say = |text: &str| work.say(LogLevel::Debug, "finalize", format!("[finalize] {text}"));
    machine.script("/bin/bash", scripts::FINALIZE, &variables, say).await?;
    let layers = machine.into_layers(&work.layers, &end.layers).await?;
    let config = config(work, end.context, inherited);
    let mut snapshot = None;
    if config.start_cmd.is_some() || config.ready_cmd.is_some() {
        let plan = Plan { config: config.clone(), for_a_layer: false, ..work.plan(&layers) };
        let machine = Machine::start(&work.control, plan).await?;
        let tell = |level, text: String| work.say(level, "finalize", text);
        bring_up(machine.hands(), &config, &tell).await?;
        let engine = work.control.engine_named(config.engine.as_deref());
        if config.start_cmd.is_some() && engine.capabilities.memory_snapshots {
            snapshot = Some(capture(work, machine).await?);
        }
    }
    Ok(Finished { layers, config, snapshot })
}

async fn capture(work: &Work, machine: Machine) -> Result<BuildSnapshot, Failure> {
    let sandbox = machine.id().clone();
    let id: SnapshotId = machine.into_warm_state().await?;
    let base = work.build.template.clone();
    Ok(BuildSnapshot { id, memory: true, sandbox, base, warm_start: true })
}

/// Either command of this build replaces both of the template it came from.
fn config(work: &Work, context: Context, inherited: BuildConfig) -> BuildConfig {
    let BuildSpec { start_cmd, ready_cmd, rules, .. } = &work.spec;
    let own = start_cmd.is_some() || ready_cmd.is_some();
    // Of this build, or else inherited: see the worker.
    let engine = work.spec.engine.clone();
    let mut config = if own {
        BuildConfig { start_cmd: start_cmd.clone(), ready_cmd: ready_cmd.clone(), ..BuildConfig::default() }
    } else {
        let has_any = inherited.start_cmd.is_some() || inherited.ready_cmd.is_some();
        let start_context = inherited.start_context.filter(|_| has_any);
        let BuildConfig { start_cmd, ready_cmd, .. } = inherited;
        BuildConfig { start_cmd, ready_cmd, start_context, ..BuildConfig::default() }
    };
    if *rules == BuildRules::BeforeDefaultUser {
        if own {
            let Context { user, workdir, env } = context.clone();
            config.start_context = Some(RunContext { user, workdir, env });
        }
        let default_user = Some("user".to_owned());
        return BuildConfig { default_user, default_workdir: None, env: context.env, engine, ..config };
    }
    let Context { user, workdir, env } = context;
    BuildConfig { default_user: Some(user), default_workdir: workdir, env, engine, ..config }
}

/// Starts what a template starts and waits until it is ready.
pub(crate) async fn bring_up(
    machine: Hands<'_>,
    config: &BuildConfig,
    tell: &(impl Fn(LogLevel, String) + Sync),
) -> Result<(), Failure> {
    let context = start_context(config);
    let ready_cmd = match (&config.ready_cmd, &config.start_cmd) {
        (Some(ready), _) => ready.as_str(),
        (None, Some(_)) => SETTLE,
        (None, None) => return Ok(()),
    };
    let started = async {
        let Some(start) = &config.start_cmd else { return std::future::pending().await };
        tell(LogLevel::Info, format!("Running start command: {start}"));
        let args = arguments(&context, start);
        let command = command(&context, &args, None);
        let end = machine.run(&command, |is_error, line| {
            let stream = if is_error { "stderr" } else { "stdout" };
            if !line.trim().is_empty() {
                tell(LogLevel::Info, format!("[start] [{stream}]: {}", line.trim()));
            }
        });
        match end.await {
            // Some start what they start in the background.
            Ok(end) if end.is_success() => std::future::pending().await,
            Ok(end) => Failure::new(format!("start command failed: {}", end.status)),
            Err(error) => Failure::new(format!("start command failed: {}", Failure::from(error).0)),
        }
    };
    tell(LogLevel::Info, format!("Waiting for template to be ready: {ready_cmd}"));
    tokio::select! {
        failure = started => Err(failure),
        ready = wait_until_ready(machine, &context, ready_cmd, tell) => ready,
    }?;
    tell(LogLevel::Info, "Template is ready".to_owned());
    Ok(())
}

async fn wait_until_ready(
    machine: Hands<'_>,
    context: &Context,
    ready: &str,
    tell: &(impl Fn(LogLevel, String) + Sync),
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut pause = ASK_SOON;
    loop {
        let args = arguments(context, ready);
        let left = READY_LIMIT.saturating_sub(begun.elapsed());
        let command = command(context, &args, Some(left));
        let say = |_, line: &str| tell(LogLevel::Debug, format!("[ready] {}", line.trim()));
        match machine.run(&command, say).await {
            Ok(end) if end.is_success() => return Ok(()),
            Ok(_) if begun.elapsed() + pause < READY_LIMIT => {}
            Ok(_) => {
                return Err(Failure::new(format!(
                    "ready command failed: ready command timed out after {} s",
                    READY_LIMIT.as_secs()
                )));
            }
            Err(error) => {
                return Err(Failure::new(format!("ready command failed: {}", Failure::from(error).0)));
            }
        }
        // A command's success is no event: it has to be asked for again.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_LATER);
    }
}

fn command<'a>(context: &'a Context, args: &'a [&'a str], limit: Option<Duration>) -> Command<'a> {
    Command {
        program: "/bin/bash",
        args,
        user: &context.user,
        cwd: context.workdir.as_deref(),
        env: &context.env,
        limit,
    }
}

fn start_context(config: &BuildConfig) -> Context {
    let RunContext { user, workdir, env } = config.start_context.clone().unwrap_or_else(|| RunContext {
        user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
        workdir: config.default_workdir.clone(),
        env: config.env.clone(),
    });
    Context { user, workdir, env: BTreeMap::from_iter(env) }
}
