//! One step of a build: what it does to the context, and in a machine to the files.
//! A step that only changes the context starts no machine unless it refers to variables that only a machine knows.
//! Error texts are the wire contract's: clients show them as they are.

use std::time::Duration;

use template::steps::{Action, Context, Step, Unset, expand, has_variables, join, scripts};

use super::cache::Progress;
use super::failure::Failure;
use super::machine::Machine;
use super::worker::Work;
use crate::LogLevel;
use crate::envd::Command;

/// Longest run of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
/// A login shell forgets the `PATH` it was given; this one is told again.
const WITH_PATH: &str = r#"PATH=$1; export PATH; eval "$2""#;

/// Where a step's words go.
pub(crate) struct Voice<'a> {
    /// The step's number, from 1.
    pub(crate) step: &'a str,
    /// `[builder 1/2]`
    pub(crate) prefix: &'a str,
}

/// Carries out a step.
pub(crate) async fn perform(
    work: &Work,
    step: &Step,
    before: &Progress,
    voice: &Voice<'_>,
) -> Result<Progress, Failure> {
    let context = &before.context;
    let known = |text: &str| expand(text, &context.env, Unset::Kept);
    match &step.action {
        Action::Run { command, user } => {
            let machine = Machine::start(&work.control, work.plan(&before.layers)).await?;
            run(work, &machine, context, command, user.as_deref(), voice).await?;
            after(work, before, machine, context.clone()).await
        }
        Action::Copy { from, to, owner, mode, archive } => {
            let to = join(context.workdir.as_deref().unwrap_or("/"), &known(to));
            let path = work.dirs.file(work.team.id, archive);
            if !path.is_file() {
                return Err(Failure::new(format!("the files of COPY {from} were not uploaded")));
            }
            let machine = Machine::start(&work.control, work.plan(&before.layers)).await?;
            let inside = format!("/tmp/.{archive}.tar");
            machine.upload(&path, &inside).await?;
            let owner = owner_of(owner.as_deref().unwrap_or(&context.user));
            let variables = [
                ("ARCHIVE", inside.as_str()),
                ("FROM", &known(from)),
                ("TO", &to),
                ("OWNER", &owner),
                ("MODE", mode.as_deref().unwrap_or("")),
            ];
            machine.script("/bin/bash", scripts::COPY, &variables, |_| {}).await?;
            after(work, before, machine, context.clone()).await
        }
        Action::Env(pairs) => {
            let mut values = context.env.clone();
            if pairs.iter().any(|(_, value)| has_variables(value)) {
                let machine = Machine::start(&work.control, work.plan(&before.layers)).await?;
                let mut own = machine.variables(&context.user).await?;
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
            let joined = join(context.workdir.as_deref().unwrap_or("/"), &known(path));
            let dir = if joined == "/" { "/" } else { joined.trim_end_matches('/') };
            let machine = Machine::start(&work.control, work.plan(&before.layers)).await?;
            let owner = owner_of(&context.user);
            let variables = [("DIR", dir), ("OWNER", &owner)];
            machine.script("/bin/bash", scripts::WORKDIR, &variables, |_| {}).await?;
            let context = Context { workdir: Some(dir.to_owned()), ..context.clone() };
            after(work, before, machine, context).await
        }
        Action::User { name, sudo } => {
            let name = known(name);
            let machine = Machine::start(&work.control, work.plan(&before.layers)).await?;
            let plain = name.split_once(':').map_or(name.as_str(), |(user, _)| user);
            let variables = [("NAME", plain), ("SUDO", if *sudo { "true" } else { "false" })];
            machine.script("/bin/bash", scripts::USER, &variables, |_| {}).await?;
            let context = Context { user: plain.to_owned(), ..context.clone() };
            after(work, before, machine, context).await
        }
    }
}

async fn after(
    work: &Work,
    before: &Progress,
    machine: Machine,
    context: Context,
) -> Result<Progress, Failure> {
    let layers = machine.into_layers(&work.layers, &before.layers).await?;
    Ok(Progress { layers, context })
}

async fn run(
    work: &Work,
    machine: &Machine,
    context: &Context,
    text: &str,
    user: Option<&str>,
    voice: &Voice<'_>,
) -> Result<(), Failure> {
    let (args, env) = (arguments(context, text), machine.trusting(&context.env));
    let command = Command {
        program: "/bin/bash",
        args: &args,
        user: user.unwrap_or(&context.user),
        cwd: context.workdir.as_deref(),
        env: &env,
        limit: Some(COMMAND_LIMIT),
    };
    let end = machine
        .run(&command, |is_error, line| {
            let stream = if is_error { "stderr" } else { "stdout" };
            let line = line.trim();
            if !line.is_empty() {
                work.say(LogLevel::Info, voice.step, format!("{} [{stream}]: {line}", voice.prefix));
            }
        })
        .await;
    let reason = match end {
        Ok(end) if end.is_success() => return Ok(()),
        Ok(end) => end.status,
        Err(error) => Failure::from(error).0,
    };
    Err(Failure::new(format!("failed to run command '{text}': {reason}")))
}

/// Arguments with which bash runs a command in a context.
pub(super) fn arguments<'a>(context: &'a Context, text: &'a str) -> Vec<&'a str> {
    match context.env.get("PATH") {
        Some(path) => vec!["-l", "-c", WITH_PATH, "bash", path, text],
        None => vec!["-l", "-c", text],
    }
}

/// As `chown` wants it: a name alone means its own group too, as a number alone does.
fn owner_of(text: &str) -> String {
    match text {
        _ if text.contains(':') => text.to_owned(),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("{text}:{text}"),
        _ => format!("{text}:"),
    }
}
