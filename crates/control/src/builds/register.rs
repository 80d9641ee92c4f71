//! Asking for a build: a name of the team's becomes a template, or finds the one it has, and the build waits for its start.
//! Tags are assigned now and mean nothing until the build is ready.
//! Protocol: `POST /v3/templates`.

use std::sync::Arc;
use std::time::Duration;

use ids::{BuildId, TemplateId};
use store::{
    Build, BuildConfig, BuildFailure, BuildStatus, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use time::OffsetDateTime;

use crate::reference::DEFAULT_TAG;
use crate::{Control, ControlError, TemplateRef, check_template_size};

/// Longest wait for a build's start.
const MAX_WAIT: Duration = Duration::from_secs(40 * 60);
/// Where nothing else is asked for.
const DEFAULT_CPUS: u32 = 2;
const DEFAULT_MEMORY: u32 = 1024;
/// Writable disk of a template's sandboxes, MiB; grows to the free space that is asked for.
const DEFAULT_DISK: u32 = 10_240;
const MAX_TAGS: usize = 32;

/// What a build is of.
#[derive(Debug, Clone)]
pub enum BuildTarget {
    /// The team's template of this name, `[namespace/]alias[:tag]`, which is made if there is none.
    Named(String),
    /// A template of the team's.
    Known(TemplateId),
    /// A new template without a name.
    Unnamed,
}

/// A build to be.
#[derive(Debug, Clone)]
pub struct NewBuild {
    /// Of what.
    pub target: BuildTarget,
    /// Tags besides the name's.
    pub tags: Vec<String>,
    /// Processors of its sandboxes.
    pub cpu_count: Option<u32>,
    /// Their memory, MiB.
    pub memory_mib: Option<u32>,
    /// Disk that they can fill, MiB.
    pub min_free_disk_mib: Option<u32>,
}

/// A build that waits for its start.
#[derive(Debug, Clone)]
pub struct Requested {
    /// Of which template.
    pub template: Template,
    /// The build.
    pub build: Build,
    /// What it will be tagged with.
    pub tags: Vec<String>,
}

impl Control {
    /// Asks for a build of a team's template.
    ///
    /// # Errors
    /// The name, a tag or the size is not allowed, the name belongs to somebody else, there is no such template, or the team has as
    /// many builds under way as it may.
    pub async fn request_build(
        self: &Arc<Self>,
        team: &Team,
        wanted: &NewBuild,
    ) -> Result<Requested, ControlError> {
        self.build_dirs()?;
        let (reference, tag) = match &wanted.target {
            BuildTarget::Named(name) => {
                let reference = own_name(team, name)?;
                let tag = name.contains(':').then(|| reference.tag_or_default().to_owned());
                (Some(reference), tag)
            }
            BuildTarget::Known(_) | BuildTarget::Unnamed => (None, None),
        };
        let tags = tags(tag, &wanted.tags)?;
        let cpu_count = wanted.cpu_count.unwrap_or(DEFAULT_CPUS);
        let memory_mib = wanted.memory_mib.unwrap_or(DEFAULT_MEMORY);
        check_template_size(team, cpu_count, memory_mib)?;
        // Whether there is a place now; it is taken at the start.
        drop(self.reserve_build(team)?);
        let most = Some(team.limits.max_disk_mib).filter(|most| *most > 0).unwrap_or(u32::MAX);
        let disk_mib = wanted.min_free_disk_mib.unwrap_or(0).max(DEFAULT_DISK).min(most);

        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let template = self.template_for(team, &wanted.target, reference.as_ref(), now)?;
        let build = Build {
            id: BuildId::generate(),
            template: template.id.clone(),
            status: BuildStatus::Waiting,
            cpu_count,
            memory_mib,
            disk_mib,
            envd_version: envd_api::VERSION.to_owned(),
            layers: Vec::new(),
            config: BuildConfig::default(),
            snapshot: None,
            failure: None,
            created_at: now,
            finished_at: None,
        };
        self.supersede(&template.id, &tags).await?;
        let assign = |tag: &String| TagAssignment {
            template: template.id.clone(),
            tag: tag.clone(),
            build: build.id,
            created_at: now,
        };
        let assignments: Vec<TagAssignment> = tags.iter().map(assign).collect();
        self.store.put_template(&template, Some(&build), &assignments).await?;
        self.catalog.load(&*self.store).await?;
        self.expect_start(build.id, MAX_WAIT);
        tracing::info!(template_id = %template.id, build_id = %build.id, team_id = %team.id, "build asked for");
        Ok(Requested { template, build, tags })
    }

    /// The team's template of this name, or of this id, or a new one.
    fn template_for(
        &self,
        team: &Team,
        target: &BuildTarget,
        reference: Option<&TemplateRef>,
        now: OffsetDateTime,
    ) -> Result<Template, ControlError> {
        let names = match (target, reference) {
            (BuildTarget::Known(id), _) => {
                let known = self.catalog.by_id(id).filter(|known| known.team == Some(team.id));
                let known = known.ok_or_else(|| ControlError::TemplateNotFound(id.to_string()))?;
                return Ok(Template { updated_at: now, ..known });
            }
            (_, Some(reference)) => {
                let name = TemplateName { namespace: Some(team.slug.clone()), alias: reference.name.clone() };
                if let Some(known) = self.catalog.by_name(&name) {
                    return Ok(Template { updated_at: now, ..known });
                }
                let by_id = reference.name.parse::<TemplateId>().ok().and_then(|id| self.catalog.by_id(&id));
                match by_id {
                    Some(known) if known.team == Some(team.id) => {
                        return Ok(Template { updated_at: now, ..known });
                    }
                    Some(_) => {
                        return Err(ControlError::Conflict(format!(
                            "Alias '{}' is already used",
                            reference.name
                        )));
                    }
                    None => vec![name],
                }
            }
            (_, None) => Vec::new(),
        };
        Ok(Template {
            id: TemplateId::generate(),
            team: Some(team.id),
            names,
            public: false,
            created_at: now,
            updated_at: now,
            spawn_count: 0,
            last_spawned: None,
        })
    }

    /// Builds of the same tags that still wait will never be started.
    async fn supersede(&self, template: &TemplateId, tags: &[String]) -> Result<(), ControlError> {
        for build in self.catalog.waiting_builds(template, tags) {
            self.fail_build(&build, "the build was superseded by a newer one.").await?;
        }
        Ok(())
    }

    /// Records a build that never ran as failed.
    pub(super) async fn fail_build(&self, build: &Build, message: &str) -> Result<(), ControlError> {
        let failed = Build {
            status: BuildStatus::Error,
            failure: Some(BuildFailure { message: message.to_owned(), step: None }),
            finished_at: Some(truncate_to_micros(OffsetDateTime::now_utc())),
            ..build.clone()
        };
        self.store.put_build(&failed).await?;
        Ok(())
    }

    /// Gives up on a build whose client has gone away.
    fn expect_start(self: &Arc<Self>, id: BuildId, patience: Duration) {
        self.spawn_until_closing(move |control| async move {
            tokio::time::sleep(patience).await;
            let _one_at_a_time = control.registering.lock().await;
            let Some(build) = control.catalog.build(id) else { return };
            if build.status != BuildStatus::Waiting {
                return;
            }
            let failed = control.fail_build(&build, "build is in waiting state for too long").await;
            if failed.is_ok() {
                let _ = control.catalog.load(&*control.store).await;
            }
        });
    }

    /// Ends what an earlier server had under way, and goes on waiting for what was not started.
    pub(crate) async fn recover_builds(self: &Arc<Self>) -> Result<(), store::StoreError> {
        let mut changed = false;
        for build in self.catalog.open_builds() {
            match build.status {
                BuildStatus::Building => {
                    let failed = self.fail_build(&build, "the server was stopped during the build").await;
                    changed |= failed.is_ok();
                }
                BuildStatus::Waiting => {
                    let waited = OffsetDateTime::now_utc() - build.created_at;
                    let waited = Duration::try_from(waited).unwrap_or_default();
                    self.expect_start(build.id, MAX_WAIT.saturating_sub(waited));
                }
                BuildStatus::Ready | BuildStatus::Error => {}
            }
        }
        if changed { self.catalog.load(&*self.store).await } else { Ok(()) }
    }
}

/// A name that the team may give.
fn own_name(team: &Team, name: &str) -> Result<TemplateRef, ControlError> {
    if name.trim().is_empty() {
        return Err(ControlError::Invalid("Name is required".to_owned()));
    }
    let reference = TemplateRef::parse(name)?;
    match reference.namespace.as_ref().filter(|namespace| **namespace != team.slug) {
        None => Ok(reference),
        Some(namespace) => Err(ControlError::Invalid(format!(
            "namespace '{namespace}' must match your team '{}'",
            team.slug
        ))),
    }
}

/// The name's tag first, then the others, each once; `default` where there is none.
fn tags(own: Option<String>, others: &[String]) -> Result<Vec<String>, ControlError> {
    let mut tags: Vec<String> = own.into_iter().collect();
    for tag in others {
        let tag = super::tags::normalised(tag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if tags.len() > MAX_TAGS {
        return Err(ControlError::Invalid(format!("a build has at most {MAX_TAGS} tags")));
    }
    if tags.is_empty() {
        tags.push(DEFAULT_TAG.to_owned());
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_from_the_name_and_the_list() {
        let of = |own: Option<&str>, others: &[&str]| {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            tags(own.map(str::to_owned), &others).map_err(|error| error.to_string())
        };
        assert_eq!(of(None, &[]).unwrap(), ["default"]);
        assert_eq!(of(Some("v1"), &["V2", "v1"]).unwrap(), ["v1", "v2"]);
        assert_eq!(of(Some("default"), &["v1"]).unwrap(), ["default", "v1"]);
        assert_eq!(of(None, &["b c"]).unwrap_err(), "invalid tag: b c");
        assert_eq!(of(None, &[""]).unwrap_err(), "invalid tag: ");
    }
}
