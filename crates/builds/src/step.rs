//! Performs one step of a build: changes the context, and files in a step sandbox. A step that only sets environment variables starts a
//! sandbox only if a value refers to other variables, because some of these are set inside the sandbox.
//! Error texts are part of the wire contract: clients show them unchanged.

use std::time::Duration;

use logs::LogLevel;
use template::steps::{Action, Context, CopiedFiles, Step, Unset, expand, has_variables, join, scripts};

use super::StepFailure;
use super::cache::Progress;
use super::context::Command;
use super::stages::{self, FinishedStage};
use super::step_sandbox::StepSandbox;
use super::task::BuildTask;

/// Maximum duration of one command.
const MAX_COMMAND: Duration = Duration::from_secs(3600);

/// Where the output of a step goes.
pub(crate) struct StepLog<'a> {
    pub(crate) task: &'a BuildTask,
    /// The step's number, from 1.
    pub(crate) step: &'a str,
    /// `[builder 1/2]`, for example.
    pub(crate) prefix: &'a str,
}

impl StepLog<'_> {
    /// Logs a line of a command's output unless it is blank.
    fn output(&self, is_error: bool, line: &str) {
        let stream = if is_error { "stderr" } else { "stdout" };
        let line = line.trim();
        if !line.is_empty() {
            self.task.log(LogLevel::Info, self.step, format!("{} [{stream}]: {line}", self.prefix));
        }
    }
}

/// Performs a step on top of `before`, with files of the stage `source` if it copies from one; returns the layers and the context after
/// it.
pub(crate) async fn perform(
    task: &BuildTask,
    step: &Step,
    source: Option<&FinishedStage>,
    before: &Progress,
    log: &StepLog<'_>,
) -> Result<Progress, StepFailure> {
    let context = &before.context;
    let expanded = |text: &str| expand(text, &context.env, Unset::Kept);
    match &step.action {
        Action::Run { command, user } => {
            let sandbox = start(task, before).await?;
            run(&sandbox, context, command, user.as_deref(), log).await?;
            finish(task, before, sandbox, context.clone()).await
        }
        Action::Copy { .. } => copy(task, step, source, before).await,
        Action::Env(pairs) => {
            let mut values = context.env.clone();
            if pairs.iter().any(|(_, value)| has_variables(value)) {
                let mut own = start(task, before).await?.variables(&context.user).await?;
                own.extend(values);
                values = own;
            }
            let mut context = context.clone();
            for (name, value) in pairs {
                context.env.insert(name.clone(), expand(value, &values, Unset::Empty));
            }
            Ok(Progress { layers: before.layers.clone(), context })
        }
        Action::Workdir(path) => {
            let joined = join(context.workdir.as_deref().unwrap_or("/"), &expanded(path));
            let dir = if joined == "/" { "/" } else { joined.trim_end_matches('/') };
            let owner = chown_owner(&context.user);
            let after = Context { workdir: Some(dir.to_owned()), ..context.clone() };
            run_script(task, before, scripts::WORKDIR, &[("DIR", dir), ("OWNER", &owner)], after).await
        }
        Action::User { name, sudo } => {
            let name = expanded(name);
            let (user, group) = name.split_once(':').unwrap_or((&name, ""));
            let variables =
                [("NAME", user), ("GROUP", group), ("SUDO", if *sudo { "true" } else { "false" })];
            let after = Context { user: name.clone(), ..context.clone() };
            run_script(task, before, scripts::USER, &variables, after).await
        }
    }
}

async fn start(task: &BuildTask, before: &Progress) -> Result<StepSandbox, StepFailure> {
    StepSandbox::start(&task.builds, task.sandbox_spec(&before.layers)).await
}

/// Runs a script of ours in a new sandbox; `after` is the context after it.
async fn run_script(
    task: &BuildTask,
    before: &Progress,
    script: &str,
    variables: &[(&str, &str)],
    after: Context,
) -> Result<Progress, StepFailure> {
    let sandbox = start(task, before).await?;
    sandbox.script("/bin/bash", script, variables, |_| {}).await?;
    finish(task, before, sandbox, after).await
}

async fn finish(
    task: &BuildTask,
    before: &Progress,
    sandbox: StepSandbox,
    context: Context,
) -> Result<Progress, StepFailure> {
    let layers = sandbox.into_layers(&task.layers, &before.layers).await?;
    Ok(Progress { layers, context })
}

async fn copy(
    task: &BuildTask,
    step: &Step,
    source: Option<&FinishedStage>,
    before: &Progress,
) -> Result<Progress, StepFailure> {
    let Action::Copy { from, to, owner, mode, files } = &step.action else {
        return Err(StepFailure::new("not a COPY step"));
    };
    let context = &before.context;
    let expanded = |text: &str| expand(text, &context.env, Unset::Kept);
    let from = expanded(from);
    let to = join(context.workdir.as_deref().unwrap_or("/"), &expanded(to));
    let path = match (files, source) {
        (CopiedFiles::Archive(hash), _) => task.dirs.file(task.team.id, hash),
        (CopiedFiles::Stage(_), Some(stage)) => stages::pack(task, stage, &from).await?,
        (CopiedFiles::Stage(name), None) => {
            return Err(StepFailure::new(format!("there is no stage '{name}'")));
        }
    };
    if !path.is_file() {
        return Err(StepFailure::new(format!("the files of COPY {from} were not uploaded")));
    }
    let owner = match (owner, files) {
        (Some(owner), _) => chown_owner(owner),
        (None, CopiedFiles::Archive(_)) => chown_owner(&context.user),
        (None, CopiedFiles::Stage(_)) => String::new(),
    };
    let whose = match files {
        CopiedFiles::Archive(_) => "the build's context".to_owned(),
        CopiedFiles::Stage(name) => format!("the stage {name}"),
    };
    let sandbox = start(task, before).await?;
    let inside = format!("/tmp/.{}.tar", task.record.id);
    sandbox.upload(&path, &inside).await?;
    let variables = [
        ("ARCHIVE", inside.as_str()),
        ("SOURCE", &whose),
        ("FROM", &from),
        ("TO", &to),
        ("OWNER", &owner),
        ("MODE", mode.as_deref().unwrap_or("")),
    ];
    sandbox.script("/bin/bash", scripts::COPY, &variables, |_| {}).await?;
    finish(task, before, sandbox, context.clone()).await
}

async fn run(
    sandbox: &StepSandbox,
    context: &Context,
    text: &str,
    user: Option<&str>,
    log: &StepLog<'_>,
) -> Result<(), StepFailure> {
    let (args, env) = (context.bash_arguments(text), sandbox.with_trust(&context.env));
    let command = Command {
        program: "/bin/bash",
        args: &args,
        user: user.unwrap_or(&context.user),
        cwd: context.workdir.as_deref(),
        env: &env,
        limit: Some(MAX_COMMAND),
    };
    let exit = sandbox.run(&command, |is_error, line| log.output(is_error, line)).await;
    let reason = match exit {
        Ok(exit) if exit.is_success() => return Ok(()),
        Ok(exit) => exit.status,
        Err(StepFailure(reason)) => reason,
    };
    Err(StepFailure::new(format!("failed to run command '{text}': {reason}")))
}

/// Returns an owner in `chown`'s form: a name alone stands for its login group too, a number alone for the group of that number.
fn chown_owner(text: &str) -> String {
    match text {
        _ if text.contains(':') => text.to_owned(),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("{text}:{text}"),
        _ => format!("{text}:"),
    }
}
