//! What a build starts from: a template of ours, a snapshot, or a container image.
//! An image is made a computer first (`PROVISION`, `DEFAULT_USER`); templates of ours are computers already.
//! The tag of an image is not looked at again while the cache knows it; `force` does.

use std::collections::BTreeMap;

use engine::RestoreMode;
use store::{Build, BuildConfig, RunContext, TemplateName};
use template::steps::{Context, key, scripts};

use super::archive::{self, Imported, Portable};
use super::cache::Progress;
use super::failure::Failure;
use super::machine::{Machine, Plan, Size};
use super::start::{ArchiveFile, BuildSource};
use super::worker::Work;
use crate::sandboxes::launch::Origin;
use crate::{LogLevel, TemplateRef};

/// Changes when what is made of the same base does.
const VERSION: &str = "base-1";
/// Names under which clients mean our own `base`.
const OWN_BASE: [&str; 3] = ["e2bdev/base", "docker.io/e2bdev/base", "index.docker.io/e2bdev/base"];

/// A base, ready for the first step.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) progress: Progress,
    pub(crate) key: String,
    /// What the template it comes from starts by itself.
    pub(crate) inherited: BuildConfig,
    /// The size that comes with it and counts instead of the one asked for.
    pub(crate) size: Option<Size>,
}

/// Finds or makes what a build starts from.
pub(crate) async fn base(work: &Work) -> Result<Base, Failure> {
    match &work.spec.source {
        BuildSource::Template(name) => {
            let reference = TemplateRef::parse(name)?;
            let resolved = work.control.resolve(&work.team, &reference).await?;
            of_template(work, name, &resolved.build).await
        }
        BuildSource::Image(image) if is_own_base(image) => {
            let name = TemplateName { namespace: None, alias: "base".to_owned() };
            let build = work.control.catalog.ready_build(&name).ok_or_else(|| {
                Failure::new(format!(
                    "'{image}' is the template base, which is not built yet: run `cofferdam template build-base`"
                ))
            })?;
            of_template(work, image, &build).await
        }
        BuildSource::Image(image) => of_image(work, image).await,
        BuildSource::Archive(archive) => of_archive(work, archive).await,
    }
}

fn is_own_base(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = name.rsplit_once(':').map_or(name, |(name, tag)| if tag.contains('/') { image } else { name });
    OWN_BASE.contains(&name)
}

async fn of_template(work: &Work, name: &str, build: &Build) -> Result<Base, Failure> {
    let key = key(&[VERSION, "template", &build.id.to_string()]);
    let config = &build.config;
    let context = Context {
        user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
        workdir: config.default_workdir.clone(),
        env: config.env.clone(),
    };
    work.say(LogLevel::Info, "base", format!("[base] FROM {name} [{key}]"));
    let mut progress = Progress { layers: build.layers.clone(), context };
    if build.is_snapshot() {
        progress = match work.cached(&key) {
            Some(known) => known,
            None => of_snapshot(work, build, &key, progress).await?,
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

/// The files of a captured sandbox become a layer like any other.
async fn of_snapshot(work: &Work, build: &Build, key: &str, below: Progress) -> Result<Progress, Failure> {
    let snapshot = build.snapshot.as_ref().expect("only called for snapshots");
    let origin = Origin::Captured {
        snapshot: snapshot.id,
        restore_mode: RestoreMode::Disk,
        of: snapshot.sandbox.clone(),
    };
    let machine = Machine::start(&work.control, Plan { origin, ..work.plan(&below.layers) }).await?;
    let layers = machine.into_layers(&work.layers, &below.layers).await?;
    let progress = Progress { layers, ..below };
    work.keep(key, &progress);
    Ok(progress)
}

async fn of_image(work: &Work, image: &str) -> Result<Base, Failure> {
    let key = key(&[VERSION, "image", image, scripts::PROVISION, scripts::DEFAULT_USER]);
    let known = if work.spec.force { None } else { work.cached(&key) };
    let progress = if let Some(known) = known {
        work.say(LogLevel::Info, "base", format!("CACHED [base] FROM {image} [{key}]"));
        known
    } else {
        work.say(LogLevel::Info, "base", format!("[base] FROM {image} [{key}]"));
        let pulled = super::image::pull(work, image).await?;
        let progress = provision(work, pulled).await?;
        work.keep(&key, &progress);
        progress
    };
    Ok(Base { progress, key, inherited: BuildConfig::default(), size: None })
}

/// A template that was exported, or else an image.
async fn of_archive(work: &Work, archive: &ArchiveFile) -> Result<Base, Failure> {
    let key = key(&[VERSION, "archive", &work.build.id.to_string()]);
    work.say(LogLevel::Info, "base", format!("[base] FROM archive [{key}]"));
    match archive::import(work, archive).await? {
        Imported::Template(portable, layers) => {
            let Portable { config, size } = *portable;
            let context = Context {
                user: config.default_user.clone().unwrap_or_else(|| "user".to_owned()),
                workdir: config.default_workdir.clone(),
                env: config.env.clone(),
            };
            let progress = Progress { layers, context };
            Ok(Base { progress, key, inherited: config, size: Some(size) })
        }
        Imported::Image(image) => {
            let progress = provision(work, image).await?;
            Ok(Base { progress, key, inherited: BuildConfig::default(), size: None })
        }
    }
}

/// An image as it was pulled.
#[derive(Debug)]
pub(super) struct Pulled {
    /// Digests, uppermost first.
    pub(super) layers: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
}

async fn provision(work: &Work, image: Pulled) -> Result<Progress, Failure> {
    let machine = Machine::start(&work.control, work.plan(&image.layers)).await?;
    let say = |text: &str| work.say(LogLevel::Debug, "base", format!("[base] {text}"));
    let path = image.env.get("PATH").map(String::as_str);
    let variables: Vec<(&str, &str)> = path.map(|path| ("PATH", path)).into_iter().collect();
    let made = machine.script("/bin/sh", scripts::PROVISION, &variables, say).await;
    made.map_err(|Failure(reason)| Failure::new(format!("the base image could not be prepared: {reason}")))?;
    work.say(LogLevel::Debug, "base", "[base] DEFAULT USER user");
    machine.script("/bin/bash", scripts::DEFAULT_USER, &[], say).await?;
    let layers = machine.into_layers(&work.layers, &image.layers).await?;
    let context = Context { user: "user".to_owned(), workdir: Some("/home/user".to_owned()), env: image.env };
    Ok(Progress { layers, context })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_base_is_known_by_its_names() {
        for own in ["e2bdev/base", "e2bdev/base:latest", "docker.io/e2bdev/base:v1", "e2bdev/base@sha256:abc"]
        {
            assert!(is_own_base(own), "{own}");
        }
        for other in ["e2bdev/base2", "base", "localhost:5000/e2bdev/base", "e2bdev/base/x"] {
            assert!(!is_own_base(other), "{other}");
        }
    }
}
