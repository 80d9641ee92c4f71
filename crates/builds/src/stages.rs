//! Stages of a build before the last: they are prepared in order, and later ones start from their files or copy some of them.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use store::{BuildConfig, BuildFailure};
use template::steps::hash_parts;

use super::StepFailure;
use super::base::{Base, prepare_base, prepare_files};
use super::cache::Progress;
use super::context::{BuildSandboxSpec, Purpose};
use super::spec::{BuildSource, StageSpec};
use super::step_sandbox::StepSandbox;
use super::task::BuildTask;
use super::uploads;
use super::worker::{StepsEnd, perform_steps};

/// A stage whose steps were performed.
#[derive(Debug)]
pub(crate) struct FinishedStage {
    name: String,
    pub(crate) progress: Progress,
    pub(crate) key: String,
    /// Whether one of its steps ignored the cache; results that need its files then ignore it too.
    pub(crate) is_forced: bool,
    pub(crate) inherited: BuildConfig,
}

/// Returns a finished stage.
pub(crate) fn find<'a>(stages: &'a [FinishedStage], name: &str) -> Result<&'a FinishedStage, StepFailure> {
    let found = stages.iter().find(|stage| stage.name == name);
    found.ok_or_else(|| StepFailure::new(format!("the build has no stage '{name}' before this")))
}

/// Performs all stages but the last.
pub(crate) async fn perform_stages(task: &BuildTask) -> Result<Vec<FinishedStage>, BuildFailure> {
    let mut finished = Vec::new();
    for stage in &task.spec.stages {
        let done = perform_stage(task, stage, &finished).await?;
        finished.push(done);
    }
    Ok(finished)
}

async fn perform_stage(
    task: &BuildTask,
    stage: &StageSpec,
    earlier: &[FinishedStage],
) -> Result<FinishedStage, BuildFailure> {
    let StageSpec { name, source, steps } = stage;
    let prepared = match source {
        BuildSource::Image(image) if steps.is_empty() => prepare_files(task, image).await,
        _ => prepare_base(task, source, earlier).await,
    };
    let Base { progress, key, inherited, .. } = prepared.map_err(|failure| failure.at("base"))?;
    let StepsEnd { progress, key, is_forced } =
        perform_steps(task, Some(name), steps, earlier, progress, key).await?;
    Ok(FinishedStage { name: name.clone(), progress, key, is_forced, inherited })
}

/// Packs files of a stage into an archive, which is kept as long as an uploaded one; returns its path.
pub(crate) async fn pack(
    task: &BuildTask,
    stage: &FinishedStage,
    from: &str,
) -> Result<PathBuf, StepFailure> {
    let hash = hash_parts(&["files of a stage", &stage.key, from]);
    let path = task.dirs.file(task.team.id, &hash);
    if path.is_file() && !stage.is_forced {
        return Ok(path);
    }
    let spec = BuildSandboxSpec { purpose: Purpose::Files, ..task.sandbox_spec(&stage.progress.layers) };
    let sandbox = StepSandbox::start(&task.builds, spec).await?;
    let part = uploads::part(&path, &task.record.id.to_string());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
        uploads::make_room(&task.builds.uploads, dir, [&path, &part]);
    }
    let mut file = fs::File::create(&part)?;
    let mut size = 0;
    let mut write = |chunk: &[u8]| {
        size += chunk.len() as u64;
        if size > uploads::MAX_ARCHIVE {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        // The disk may be slower than the sandbox; this keeps the memory between them bounded.
        tokio::task::block_in_place(|| file.write_all(chunk))
    };
    let packed = sandbox.pack(from, &mut write).await;
    if let Err(failure) = packed {
        let _ = fs::remove_file(&part);
        return Err(failure);
    }
    fs::rename(&part, &path)?;
    Ok(path)
}
