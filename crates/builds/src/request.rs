//! Requests builds: the name leads to the team's template, which is created if there is none, and the build waits until it is
//! started. Its tags are assigned now, and refer to it once it is ready.
//! Protocol: `POST /v3/templates`.

use std::sync::Arc;
use std::time::Duration;

use catalog::{CatalogError, DEFAULT_TAG, TemplateRef, normalised_tag};
use ids::{BuildId, TemplateId};
use limits::check_template_size;
use store::{
    Build, BuildConfig, BuildFailure, BuildStatus, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use time::OffsetDateTime;

use super::{BuildError, Builds};

/// How long a requested build waits for its start before it fails.
const MAX_WAIT: Duration = Duration::from_secs(40 * 60);
/// Default number of processors.
const DEFAULT_CPUS: u32 = 2;
/// Default memory, MiB.
const DEFAULT_MEMORY: u32 = 1024;
/// Minimum writable disk, MiB; a larger requested free space is used instead.
const DEFAULT_DISK: u32 = 10_240;
/// Maximum number of tags of a build.
const MAX_TAGS: usize = 32;

/// The template that a build is for.
#[derive(Debug, Clone)]
pub enum BuildTarget {
    /// The team's template of this name, `[namespace/]alias[:tag]`, created if there is none.
    Named(String),
    /// An existing template of the team.
    Known(TemplateId),
    /// A new template without a name.
    Unnamed,
}

/// A requested build.
#[derive(Debug, Clone)]
pub struct NewBuild {
    /// The template.
    pub target: BuildTarget,
    /// Tags in addition to the tag in the name.
    pub tags: Vec<String>,
    /// Processors of the template's sandboxes.
    pub cpu_count: Option<u32>,
    /// Their memory, MiB.
    pub memory_mib: Option<u32>,
    /// Disk that they can write, MiB.
    pub min_free_disk_mib: Option<u32>,
}

/// A build that waits to be started.
#[derive(Debug, Clone)]
pub struct PendingBuild {
    /// Its template.
    pub template: Template,
    /// The build.
    pub build: Build,
    /// Its tags.
    pub tags: Vec<String>,
}

impl Builds {
    /// Requests a build of a team's template.
    ///
    /// # Errors
    /// The name, a tag or the size is not allowed, the name belongs to another team, there is no such template, or the team has too
    /// many builds in progress.
    pub async fn request(
        self: &Arc<Self>,
        team: &Team,
        wanted: &NewBuild,
    ) -> Result<PendingBuild, BuildError> {
        self.workspace()?;
        let (reference, tag) = match &wanted.target {
            BuildTarget::Named(name) => {
                let reference = own_name(team, name)?;
                let tag = name.contains(':').then(|| reference.tag_or_default().to_owned());
                (Some(reference), tag)
            }
            BuildTarget::Known(_) | BuildTarget::Unnamed => (None, None),
        };
        let tags = all_tags(tag, &wanted.tags)?;
        let cpu_count = wanted.cpu_count.unwrap_or(DEFAULT_CPUS);
        let memory_mib = wanted.memory_mib.unwrap_or(DEFAULT_MEMORY);
        check_template_size(team, cpu_count, memory_mib)?;
        // Only a check: the build is counted when it starts.
        drop(self.reserve(team)?);
        let most = Some(team.limits.max_disk_mib).filter(|most| *most > 0).unwrap_or(u32::MAX);
        let disk_mib = wanted.min_free_disk_mib.unwrap_or(0).max(DEFAULT_DISK).min(most);

        let change = self.catalog.begin_change().await?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let template = self.template_for(team, &wanted.target, reference.as_ref(), now)?;
        let build = Build {
            id: BuildId::generate(),
            template: template.id.clone(),
            status: BuildStatus::Waiting,
            cpu_count,
            memory_mib,
            disk_mib,
            envd_version: self.config.envd_version.to_owned(),
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
        change.put_template(&template, Some(&build), &assignments).await?;
        drop(change);
        self.expect_start(build.id, MAX_WAIT);
        tracing::info!(template_id = %template.id, build_id = %build.id, team_id = %team.id, "build requested");
        Ok(PendingBuild { template, build, tags })
    }

    /// Returns the team's template of this name or id, or a new one.
    fn template_for(
        &self,
        team: &Team,
        target: &BuildTarget,
        reference: Option<&TemplateRef>,
        now: OffsetDateTime,
    ) -> Result<Template, BuildError> {
        let names = match (target, reference) {
            (BuildTarget::Known(id), _) => {
                let known = self.catalog.template(id).filter(|known| known.team == Some(team.id));
                let known = known.ok_or_else(|| CatalogError::TemplateNotFound(id.to_string()))?;
                return Ok(Template { updated_at: now, ..known });
            }
            (_, Some(reference)) => {
                let name = TemplateName { namespace: Some(team.slug.clone()), alias: reference.name.clone() };
                if let Some(known) = self.catalog.template_named(&name) {
                    return Ok(Template { updated_at: now, ..known });
                }
                let by_id =
                    reference.name.parse::<TemplateId>().ok().and_then(|id| self.catalog.template(&id));
                match by_id {
                    Some(known) if known.team == Some(team.id) => {
                        return Ok(Template { updated_at: now, ..known });
                    }
                    Some(_) => {
                        return Err(BuildError::Conflict(format!(
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

    /// Fails waiting builds with the same tags: a newer build replaces them.
    async fn supersede(&self, template: &TemplateId, tags: &[String]) -> Result<(), BuildError> {
        for build in self.catalog.waiting_builds(template, tags) {
            self.fail_build(&build, "the build was superseded by a newer one.").await?;
        }
        Ok(())
    }

    /// Records a build that never ran as failed.
    async fn fail_build(&self, build: &Build, message: &str) -> Result<(), BuildError> {
        let failed = Build {
            status: BuildStatus::Error,
            failure: Some(BuildFailure { message: message.to_owned(), step: None }),
            finished_at: Some(truncate_to_micros(OffsetDateTime::now_utc())),
            ..build.clone()
        };
        self.catalog.put_build(&failed).await?;
        Ok(())
    }

    /// Fails a build if it has not been started after `patience`.
    fn expect_start(self: &Arc<Self>, id: BuildId, patience: Duration) {
        let builds = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = builds.closing.cancelled() => return,
                () = tokio::time::sleep(patience) => {}
            }
            let Ok(_change) = builds.catalog.begin_change().await else { return };
            let build = builds.catalog.build(id).filter(|build| build.status == BuildStatus::Waiting);
            if let Some(build) = build
                && let Err(error) = builds.fail_build(&build, "build is in waiting state for too long").await
            {
                tracing::warn!(build_id = %id, %error, "failed to record that a build was never started");
            }
        });
    }

    /// Marks builds that an earlier server process had in progress as failed. Builds that were not started yet keep waiting.
    pub async fn recover(self: &Arc<Self>) {
        for build in self.catalog.open_builds() {
            match build.status {
                BuildStatus::Building => {
                    let failed = self.fail_build(&build, "the server was stopped during the build").await;
                    if let Err(error) = failed {
                        tracing::error!(build_id = %build.id, %error, "failed to record the end of a build");
                    }
                }
                BuildStatus::Waiting => {
                    let waited = OffsetDateTime::now_utc() - build.created_at;
                    let waited = Duration::try_from(waited).unwrap_or_default();
                    self.expect_start(build.id, MAX_WAIT.saturating_sub(waited));
                }
                BuildStatus::Ready | BuildStatus::Error => {}
            }
        }
    }
}

/// Parses a name and checks that its namespace is the team's.
fn own_name(team: &Team, name: &str) -> Result<TemplateRef, BuildError> {
    if name.trim().is_empty() {
        return Err(BuildError::Invalid("Name is required".to_owned()));
    }
    let reference = TemplateRef::parse(name)?;
    match reference.namespace.as_ref().filter(|namespace| **namespace != team.slug) {
        None => Ok(reference),
        Some(namespace) => {
            Err(BuildError::Invalid(format!("namespace '{namespace}' must match your team '{}'", team.slug)))
        }
    }
}

/// Returns the tag in the name, then the tags `others`, without duplicates; `default` if there are none.
fn all_tags(own: Option<String>, others: &[String]) -> Result<Vec<String>, BuildError> {
    let mut tags: Vec<String> = own.into_iter().collect();
    for tag in others {
        let tag = normalised_tag(tag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if tags.len() > MAX_TAGS {
        return Err(BuildError::Invalid(format!("a build has at most {MAX_TAGS} tags")));
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
            all_tags(own.map(str::to_owned), &others).map_err(|error| error.to_string())
        };
        assert_eq!(of(None, &[]).unwrap(), ["default"]);
        assert_eq!(of(Some("v1"), &["V2", "v1"]).unwrap(), ["v1", "v2"]);
        assert_eq!(of(Some("default"), &["v1"]).unwrap(), ["default", "v1"]);
        assert_eq!(of(None, &["b c"]).unwrap_err(), "invalid tag: b c");
        assert_eq!(of(None, &[""]).unwrap_err(), "invalid tag: ");
    }
}
