//! Carries out one build and records its outcome. A build may be cancelled at any await: its step sandbox is then killed, and its
//! finished steps are in the cache for the next build.

use std::sync::Arc;
use std::time::Duration;

use logs::LogLevel;
use store::{Build, BuildFailure, BuildStatus, truncate_to_micros};
use template::steps::{Context, Step, StepError, hash_parts};
use time::OffsetDateTime;
use tracing::instrument;

use super::StepFailure;
use super::base::{Base, prepare_base};
use super::cache::Progress;
use super::context::Size;
use super::finalize::{Finished, finalize};
use super::spec::{BuildRules, BuildSource};
use super::stages::{self, FinishedStage, perform_stages};
use super::step::{StepLog, perform};
use super::task::BuildTask;

/// Maximum duration of a build.
const MAX_DURATION: Duration = Duration::from_secs(3600);

/// Carries out a build, logs and records its outcome.
#[instrument(
    name = "build", skip_all,
    fields(team_id = %task.team.id, template_id = %task.record.template, build_id = %task.record.id)
)]
pub(crate) async fn run(mut task: BuildTask) {
    let timer = telemetry::build_timer();
    let begun = std::time::Instant::now();
    let job = Arc::clone(&task.job);
    let closing = task.builds.closing.clone();
    let failed = |message: &str| Err(BuildFailure { message: message.to_owned(), step: None });
    let outcome = tokio::select! {
        biased;
        () = closing.cancelled() => failed("the server was stopped during the build"),
        () = job.cancel.cancelled() => failed("build was cancelled"),
        done = tokio::time::timeout(MAX_DURATION, carry_out(&mut task)) => {
            done.unwrap_or_else(|_| failed("build timed out"))
        }
    };
    match &outcome {
        Ok(_) => {
            job.log.add(LogLevel::Info, None, format!("Build finished, took {}s", begun.elapsed().as_secs()));
        }
        Err(failure) => {
            let text = format!("Build failed: {}", failure.message);
            job.log.add(LogLevel::Error, failure.step.as_deref(), text);
        }
    }
    if outcome.is_ok() {
        timer.succeeded();
    }
    record_outcome(task, outcome).await;
}

async fn carry_out(task: &mut BuildTask) -> Result<Finished, BuildFailure> {
    let (template, build) = (&task.record.template, task.record.id);
    task.job.log.add(LogLevel::Info, None, format!("Building template {template}/{build}"));
    let stages = perform_stages(task).await?;
    let base = prepare_base(task, &task.spec.source, &stages).await.map_err(|failure| failure.at("base"))?;
    let Base { progress, key, inherited, size } = apply_rules(task, base);
    if let Some(Size { cpu_count, memory_mib, disk_mib }) = size {
        task.record = Build { cpu_count, memory_mib, disk_mib, ..task.record.clone() };
    }
    // The steps run on the engine that the template's sandboxes will run on.
    if task.spec.engine.is_none() {
        task.spec.engine.clone_from(&inherited.engine);
    }
    let end = perform_steps(task, None, &task.spec.steps, &stages, progress, key).await?;
    finalize(task, end.progress, inherited).await.map_err(|failure| failure.at("finalize"))
}

/// Under the rules of old clients, makes the steps of a build from an image begin as root, and changes their cache keys accordingly.
fn apply_rules(task: &BuildTask, base: Base) -> Base {
    let is_image = matches!(task.spec.source, BuildSource::Image(_));
    if task.spec.rules == BuildRules::Current || !is_image {
        return base;
    }
    let Base { progress, key: below, inherited, size } = base;
    let context = Context { user: "root".to_owned(), workdir: None, ..progress.context };
    Base { progress: Progress { context, ..progress }, key: hash_parts(&["root", &below]), inherited, size }
}

/// Outcome of the steps of a stage.
pub(crate) struct StepsEnd {
    pub(crate) progress: Progress,
    /// Cache key of the last step.
    pub(crate) key: String,
    /// Whether a step ignored the cache.
    pub(crate) is_forced: bool,
}

/// Performs the steps of a stage (`None`: the last), or takes their results from the cache. The cache key of a step covers all earlier
/// steps, the base, and the stage that it copies from.
pub(crate) async fn perform_steps(
    task: &BuildTask,
    stage: Option<&str>,
    steps: &[Result<Step, StepError>],
    stages: &[FinishedStage],
    mut progress: Progress,
    mut key: String,
) -> Result<StepsEnd, BuildFailure> {
    let count = steps.len();
    let mut force = task.spec.force;
    for (index, parsed) in steps.iter().enumerate() {
        let number = (index + 1).to_string();
        let prefix = format!("[{} {number}/{count}]", stage.unwrap_or("builder"));
        let number = stage.map_or_else(|| number.clone(), |stage| format!("{stage} {number}"));
        let fail = |failure: StepFailure| failure.at(&number);
        let step: &Step = parsed.as_ref().map_err(|error| fail(error.clone().into()))?;
        key = step.cache_key(&key);
        force |= step.force;
        let source = step.stage().map(|name| stages::find(stages, name)).transpose().map_err(fail)?;
        if let Some(source) = source {
            key = hash_parts(&[&key, &source.key]);
            force |= source.is_forced;
        }
        let cached = if force { None } else { task.cached(&key) };
        let mark = if cached.is_some() { "CACHED " } else { "" };
        task.log(LogLevel::Info, &number, format!("{mark}{prefix} {} [{key}]", step.title()));
        progress = match cached {
            Some(cached) => cached,
            None => {
                let log = StepLog { task, step: &number, prefix: &prefix };
                let done = perform(task, step, source, &progress, &log).await.map_err(fail)?;
                task.cache_result(&key, &done);
                done
            }
        };
    }
    Ok(StepsEnd { progress, key, is_forced: force })
}

async fn record_outcome(task: BuildTask, outcome: Result<Finished, BuildFailure>) {
    let BuildTask { builds, team, mut record, job, dirs, _reservation, .. } = task;
    let took = OffsetDateTime::now_utc() - record.created_at;
    record.finished_at = Some(truncate_to_micros(OffsetDateTime::now_utc()));
    let mut warm_start = None;
    match outcome {
        Ok(Finished { layers, config, snapshot }) => {
            warm_start = snapshot.as_ref().map(|snapshot| snapshot.id);
            record = Build { status: BuildStatus::Ready, layers, config, snapshot, ..record };
        }
        Err(failure) => record = Build { status: BuildStatus::Error, failure: Some(failure), ..record },
    }
    let (logs, lines, id) = (dirs.logs(), job.log.lines(), record.id);
    let _ = tokio::task::spawn_blocking(move || logs.append(team.id, &id.to_string(), &lines)).await;
    let is_recorded = match builds.catalog.put_build(&record).await {
        Ok(true) => true,
        Ok(false) => {
            tracing::info!(build_id = %record.id, "the template was deleted during its build");
            false
        }
        Err(error) => {
            tracing::error!(build_id = %record.id, %error, "failed to record the end of a build");
            false
        }
    };
    builds.jobs.end(record.id);
    if let Some(snapshot) = warm_start.filter(|_| !is_recorded) {
        builds.context.discard_snapshot(snapshot).await;
    }
    tracing::info!(
        template_id = %record.template, build_id = %record.id, status = record.status.as_str(),
        took_ms = i64::try_from(took.whole_milliseconds()).unwrap_or(i64::MAX), "build ended"
    );
    if is_recorded && record.status == BuildStatus::Ready {
        if let Err(StepFailure(error)) = builds.context.prepare(&record).await {
            tracing::warn!(build_id = %record.id, error, "the engine cannot use a finished build");
        }
        builds.context.drop_stale_warm_starts(&record.template).await;
    }
}
