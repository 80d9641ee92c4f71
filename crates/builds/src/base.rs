//! Prepares the base of a build: a template, a snapshot, a container image, an earlier stage or an archive. An image first gets the programs and the
//! user that sandboxes need (scripts `PROVISION` and `DEFAULT_USER`); templates have them already. The result is cached: an image's tag
//! is looked up in its registry again only if the build ignores the cache.

use catalog::TemplateRef;
use logs::LogLevel;
use store::{Build, BuildConfig, RunContext, TemplateName};
use template::steps::{Context, hash_parts, scripts};

use super::StepFailure;
use super::archive::{self, ExportedConfig, Imported};
use super::cache::Progress;
use super::context::{BuildOrigin, BuildSandboxSpec, Size};
use super::image::{self, UnpackedImage};
use super::spec::{ArchiveFile, BuildSource};
use super::stages::{self, FinishedStage};
use super::step_sandbox::StepSandbox;
use super::task::BuildTask;

/// Part of the cache keys; to be changed whenever the same base would be prepared differently.
const VERSION: &str = "base-1";
/// Image names by which clients refer to our own template `base`.
const OWN_BASE: [&str; 3] = ["e2bdev/base", "docker.io/e2bdev/base", "index.docker.io/e2bdev/base"];

/// A base that is ready for the first step.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) progress: Progress,
    pub(crate) key: String,
    /// Configuration of the template that the build starts from.
    pub(crate) inherited: BuildConfig,
    /// Size of the sandboxes as given in an archive; replaces the requested size.
    pub(crate) size: Option<Size>,
}

/// Returns what a build starts from, from the cache or newly prepared.
pub(crate) async fn prepare_base(
    task: &BuildTask,
    source: &BuildSource,
    stages: &[FinishedStage],
) -> Result<Base, StepFailure> {
    match source {
        BuildSource::Template(name) => {
            let reference = TemplateRef::parse(name)?;
            let resolved = task.builds.catalog.resolve(&task.team, &reference).await?;
            of_template(task, name, &resolved.build).await
        }
        BuildSource::Image(image) if is_own_base(image) => of_own_base(task, image).await,
        BuildSource::Image(image) => of_image(task, image).await,
        BuildSource::Stage(name) => {
            let stage = stages::find(stages, name)?;
            task.log(LogLevel::Info, "base", format!("[base] FROM {name} [{}]", stage.key));
            let (progress, key) = (stage.progress.clone(), stage.key.clone());
            Ok(Base { progress, key, inherited: stage.inherited.clone(), size: None })
        }
        BuildSource::Archive(archive) => of_archive(task, archive).await,
    }
}

/// Returns an image whose files are only copied: nothing is run or installed in it.
pub(crate) async fn prepare_files(task: &BuildTask, image: &str) -> Result<Base, StepFailure> {
    if is_own_base(image) {
        return of_own_base(task, image).await;
    }
    let key = hash_parts(&[VERSION, "files of an image", image]);
    let known = if task.spec.force { None } else { task.cached(&key) };
    let mark = if known.is_some() { "CACHED " } else { "" };
    task.log(LogLevel::Info, "base", format!("{mark}[base] FROM {image} [{key}]"));
    let progress = if let Some(known) = known {
        known
    } else {
        let UnpackedImage { layers, env } = image::pull(task, image).await?;
        let progress = Progress { layers, context: Context { user: "root".to_owned(), workdir: None, env } };
        task.cache_result(&key, &progress);
        progress
    };
    Ok(Base { progress, key, inherited: BuildConfig::default(), size: None })
}

async fn of_own_base(task: &BuildTask, image: &str) -> Result<Base, StepFailure> {
    let name = TemplateName { namespace: None, alias: "base".to_owned() };
    let build = task.builds.catalog.default_build_named(&name).ok_or_else(|| {
        StepFailure::new(format!(
            "'{image}' is the template base, which is not built yet: run `cofferdam template build-base`"
        ))
    })?;
    of_template(task, image, &build).await
}

fn is_own_base(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = name.rsplit_once(':').map_or(name, |(name, tag)| if tag.contains('/') { image } else { name });
    OWN_BASE.contains(&name)
}

async fn of_template(task: &BuildTask, name: &str, build: &Build) -> Result<Base, StepFailure> {
    let key = hash_parts(&[VERSION, "template", &build.id.to_string()]);
    let config = &build.config;
    let context = Context {
        user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
        workdir: config.default_workdir.clone(),
        env: config.env.clone(),
    };
    task.log(LogLevel::Info, "base", format!("[base] FROM {name} [{key}]"));
    let mut progress = Progress { layers: build.layers.clone(), context };
    if build.is_snapshot() {
        progress = match task.cached(&key) {
            Some(known) => known,
            None => of_snapshot(task, build, &key, progress).await?,
        };
    }
    let mut inherited = config.clone();
    inherited.start_context.get_or_insert_with(|| RunContext {
        user: progress.context.user.clone(),
        workdir: progress.context.workdir.clone(),
        env: progress.context.env.clone(),
    });
    Ok(Base { progress, key, inherited, size: None })
}

/// Makes a layer of the files of a snapshot.
async fn of_snapshot(
    task: &BuildTask,
    build: &Build,
    key: &str,
    below: Progress,
) -> Result<Progress, StepFailure> {
    let snapshot = build.snapshot.as_ref().expect("only called for snapshots");
    let origin = BuildOrigin::Snapshot { snapshot: snapshot.id, sandbox: snapshot.sandbox.clone() };
    let spec = BuildSandboxSpec { origin, ..task.sandbox_spec(&below.layers) };
    let sandbox = StepSandbox::start(&task.builds, spec).await?;
    let layers = sandbox.into_layers(&task.layers, &below.layers).await?;
    let progress = Progress { layers, ..below };
    task.cache_result(key, &progress);
    Ok(progress)
}

async fn of_image(task: &BuildTask, image: &str) -> Result<Base, StepFailure> {
    let key = hash_parts(&[VERSION, "image", image, scripts::PROVISION, scripts::DEFAULT_USER]);
    let known = if task.spec.force { None } else { task.cached(&key) };
    let progress = if let Some(known) = known {
        task.log(LogLevel::Info, "base", format!("CACHED [base] FROM {image} [{key}]"));
        known
    } else {
        task.log(LogLevel::Info, "base", format!("[base] FROM {image} [{key}]"));
        let pulled = image::pull(task, image).await?;
        let progress = provision(task, pulled).await?;
        task.cache_result(&key, &progress);
        progress
    };
    Ok(Base { progress, key, inherited: BuildConfig::default(), size: None })
}

/// An archive of a template or of an image.
async fn of_archive(task: &BuildTask, archive: &ArchiveFile) -> Result<Base, StepFailure> {
    let key = hash_parts(&[VERSION, "archive", &task.record.id.to_string()]);
    task.log(LogLevel::Info, "base", format!("[base] FROM archive [{key}]"));
    match archive::import(task, archive).await? {
        Imported::Template(exported, layers) => {
            let ExportedConfig { config, size } = *exported;
            let context = Context {
                user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
                workdir: config.default_workdir.clone(),
                env: config.env.clone(),
            };
            let progress = Progress { layers, context };
            Ok(Base { progress, key, inherited: config, size: Some(size) })
        }
        Imported::Image(image) => {
            let progress = provision(task, image).await?;
            Ok(Base { progress, key, inherited: BuildConfig::default(), size: None })
        }
    }
}

/// Makes an image usable as a sandbox: installs what envd and the SDKs need, and adds the default user.
async fn provision(task: &BuildTask, image: UnpackedImage) -> Result<Progress, StepFailure> {
    let sandbox = StepSandbox::start(&task.builds, task.sandbox_spec(&image.layers)).await?;
    let log = |text: &str| task.log(LogLevel::Debug, "base", format!("[base] {text}"));
    let path = image.env.get("PATH").map(String::as_str);
    let variables: Vec<(&str, &str)> = path.map(|path| ("PATH", path)).into_iter().collect();
    let provisioned = sandbox.script("/bin/sh", scripts::PROVISION, &variables, log).await;
    provisioned.map_err(|StepFailure(reason)| {
        StepFailure::new(format!("the base image could not be prepared: {reason}"))
    })?;
    task.log(LogLevel::Debug, "base", "[base] DEFAULT USER user");
    sandbox.script("/bin/bash", scripts::DEFAULT_USER, &[], log).await?;
    let layers = sandbox.into_layers(&task.layers, &image.layers).await?;
    let context = Context { user: "user".to_owned(), workdir: Some("/home/user".to_owned()), env: image.env };
    Ok(Progress { layers, context })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_base_is_recognised_by_its_names() {
        for own in ["e2bdev/base", "e2bdev/base:latest", "docker.io/e2bdev/base:v1", "e2bdev/base@sha256:abc"]
        {
            assert!(is_own_base(own), "{own}");
        }
        for other in ["e2bdev/base2", "base", "localhost:5000/e2bdev/base", "e2bdev/base/x"] {
            assert!(!is_own_base(other), "{other}");
        }
    }
}
