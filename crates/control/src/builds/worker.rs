//! Carries out one build from its base to its end, and records how it ended.
//! It may be stopped at any wait: what it holds goes away with it, what it has finished is in the cache for the next one.
//! The time limit is for all of it.

use std::sync::Arc;
use std::time::Duration;

use engine::SnapshotId;
use layers::LayerStore;
use store::{Build, BuildConfig, BuildFailure, BuildStatus, Team, truncate_to_micros};
use template::steps::{Context, Step, key};
use time::OffsetDateTime;
use tracing::instrument;

use super::base::{Base, base};
use super::cache::{Cache, Progress};
use super::failure::Failure;
use super::finalize::{Finished, finalize};
use super::jobs::Job;
use super::machine::{Plan, Size};
use super::perform::{Voice, perform};
use super::start::{BuildRules, BuildSource, BuildSpec};
use super::{Directories, log};
use crate::resources::BuildPlace;
use crate::sandboxes::launch::Origin;
use crate::{Control, LogLevel};

/// Longest build.
const LIMIT: Duration = Duration::from_secs(3600);

/// All that a build's parts need to know.
pub(crate) struct Work {
    pub(crate) control: Arc<Control>,
    pub(crate) team: Arc<Team>,
    pub(crate) build: Build,
    pub(crate) spec: BuildSpec,
    pub(crate) job: Arc<Job>,
    pub(crate) dirs: Directories,
    pub(crate) layers: LayerStore,
    /// Among the team's builds.
    pub(crate) _place: BuildPlace,
}

impl Work {
    pub(crate) fn say(&self, level: LogLevel, step: &str, message: impl AsRef<str>) {
        self.job.log.say(level, Some(step), message);
    }

    /// A plan for a machine on these layers.
    pub(crate) fn plan<'a>(&'a self, layers: &'a [String]) -> Plan<'a> {
        let Build { cpu_count, memory_mib, disk_mib, .. } = self.build;
        Plan {
            team: self.team.id,
            template: &self.build.template,
            size: Size { cpu_count, memory_mib, disk_mib },
            layers,
            origin: Origin::Template,
            config: BuildConfig { engine: self.spec.engine.clone(), ..BuildConfig::default() },
            for_a_layer: true,
        }
    }

    fn cache(&self) -> Cache {
        Cache::of(&self.dirs.cache(), self.team.id)
    }

    pub(crate) fn cached(&self, key: &str) -> Option<Progress> {
        self.cache().get(key, &self.layers)
    }

    /// Remembers what was done. A cache that cannot be written costs time later and nothing else.
    pub(crate) fn keep(&self, key: &str, progress: &Progress) {
        if let Err(error) = self.cache().put(key, progress) {
            tracing::warn!(%error, "a step of a build could not be remembered");
        }
    }
}

/// Carries out a build. Never fails: how it ended is recorded.
#[instrument(
    name = "build", skip_all,
    fields(team_id = %work.team.id, template_id = %work.build.template, build_id = %work.build.id)
)]
pub(crate) async fn work(mut work: Work) {
    let timer = telemetry::build_timer();
    let begun = std::time::Instant::now();
    let job = Arc::clone(&work.job);
    let closing = work.control.closing.clone();
    let outcome = tokio::select! {
        biased;
        () = closing.cancelled() => {
            Err(BuildFailure { message: "the server was stopped during the build".to_owned(), step: None })
        }
        () = job.cancel.cancelled() => Err(BuildFailure { message: "build was cancelled".to_owned(), step: None }),
        done = tokio::time::timeout(LIMIT, carry_out(&mut work)) => done.unwrap_or_else(|_| {
            Err(BuildFailure { message: "build timed out".to_owned(), step: None })
        }),
    };
    match &outcome {
        Ok(_) => {
            job.log.say(LogLevel::Info, None, format!("Build finished, took {}s", begun.elapsed().as_secs()));
        }
        Err(failure) => {
            job.log.say(
                LogLevel::Error,
                failure.step.as_deref(),
                format!("Build failed: {}", failure.message),
            );
        }
    }
    if outcome.is_ok() {
        timer.succeeded();
    }
    record(work, outcome).await;
}

async fn carry_out(work: &mut Work) -> Result<Finished, BuildFailure> {
    let (template, build) = (&work.build.template, work.build.id);
    work.job.log.say(LogLevel::Info, None, format!("Building template {template}/{build}"));
    let base = base(work).await.map_err(|failure| failure.at("base"))?;
    let Base { progress, key, inherited, size } = by_rules(work, base);
    if let Some(Size { cpu_count, memory_mib, disk_mib }) = size {
        work.build = Build { cpu_count, memory_mib, disk_mib, ..work.build.clone() };
    }
    // The next machines are of the engine that the template's sandboxes will be of.
    if work.spec.engine.is_none() {
        work.spec.engine.clone_from(&inherited.engine);
    }
    let end = steps(work, progress, key).await?;
    finalize(work, end, inherited).await.map_err(|failure| failure.at("finalize"))
}

/// Where nobody is the default user yet, an image's steps begin as root; what they come to is cached apart.
fn by_rules(work: &Work, base: Base) -> Base {
    let is_image = matches!(work.spec.source, BuildSource::Image(_));
    if work.spec.rules == BuildRules::Current || !is_image {
        return base;
    }
    let Base { progress, key: below, inherited, size } = base;
    let context = Context { user: "root".to_owned(), workdir: None, ..progress.context };
    Base { progress: Progress { context, ..progress }, key: key(&["root", &below]), inherited, size }
}

async fn steps(work: &Work, mut progress: Progress, mut key: String) -> Result<Progress, BuildFailure> {
    let count = work.spec.steps.len();
    let mut force = work.spec.force;
    for (index, raw) in work.spec.steps.iter().enumerate() {
        let number = (index + 1).to_string();
        let prefix = format!("[builder {number}/{count}]");
        let blame = |failure: Failure| failure.at(&number);
        let step: &Step = raw.as_ref().map_err(|error| blame(error.clone().into()))?;
        key = step.key(&key);
        force |= step.force;
        let known = if force { None } else { work.cached(&key) };
        let mark = if known.is_some() { "CACHED " } else { "" };
        work.say(LogLevel::Info, &number, format!("{mark}{prefix} {} [{key}]", step.title()));
        progress = match known {
            Some(known) => known,
            None => {
                let voice = Voice { step: &number, prefix: &prefix };
                let done = perform(work, step, &progress, &voice).await.map_err(blame)?;
                work.keep(&key, &done);
                done
            }
        };
    }
    Ok(progress)
}

async fn record(work: Work, outcome: Result<Finished, BuildFailure>) {
    let Work { control, team, mut build, job, dirs, _place, .. } = work;
    let took = OffsetDateTime::now_utc() - build.created_at;
    build.finished_at = Some(truncate_to_micros(OffsetDateTime::now_utc()));
    let mut captured: Option<SnapshotId> = None;
    match outcome {
        Ok(Finished { layers, config, snapshot }) => {
            captured = snapshot.as_ref().map(|snapshot| snapshot.id);
            build = Build { status: BuildStatus::Ready, layers, config, snapshot, ..build };
        }
        Err(failure) => build = Build { status: BuildStatus::Error, failure: Some(failure), ..build },
    }
    let lines = job.log.lines();
    let (book, id) = (log::book(&dirs), build.id);
    let _ = tokio::task::spawn_blocking(move || book.append(team.id, &id.to_string(), &lines)).await;
    let recorded = match control.store.put_build(&build).await {
        Ok(true) => control.catalog.load(&*control.store).await.is_ok(),
        Ok(false) => {
            tracing::info!(build_id = %build.id, "a template was deleted while it was built");
            false
        }
        Err(error) => {
            tracing::error!(build_id = %build.id, %error, "the end of a build was not recorded");
            false
        }
    };
    control.jobs.end(build.id);
    if let Some(state) = captured.filter(|_| !recorded) {
        control.discard_state(state).await;
    }
    tracing::info!(
        template_id = %build.template, build_id = %build.id, status = build.status.as_str(),
        took_ms = i64::try_from(took.whole_milliseconds()).unwrap_or(i64::MAX), "build ended"
    );
    if recorded && build.status == BuildStatus::Ready {
        if let Err(error) = control.prepare(&build).await {
            tracing::warn!(build_id = %build.id, %error, "a template is built and not usable");
        }
        control.drop_stale_warm_starts(&build.template).await;
    }
}
