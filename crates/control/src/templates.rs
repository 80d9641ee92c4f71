//! Changes of templates that involve more than the catalog: register a finished build, delete, remove tags.

use catalog::{Change, DEFAULT_TAG, TemplateRef, TemplateSummary};
use ids::{BuildId, TeamId, TemplateId};
use store::{
    Build, BuildConfig, BuildStatus, SandboxState, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use time::OffsetDateTime;

use crate::{Control, ControlError};

/// A template whose layers exist already.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The owner; a template without one is for every team.
    pub team: Option<TeamId>,
    /// Its alias: in the team's namespace, or in the global one without a team.
    pub alias: String,
    /// Whether other teams may use it.
    pub public: bool,
    /// Layer digests, uppermost first.
    pub layers: Vec<String>,
    /// Defaults of its sandboxes.
    pub config: BuildConfig,
    /// Processors of a sandbox.
    pub cpu_count: u32,
    /// Memory of a sandbox, MiB.
    pub memory_mib: u32,
    /// Writable disk of a sandbox, MiB.
    pub disk_mib: u32,
}

impl Control {
    /// Returns the templates that a team can see, as [`Catalog::templates_visible_to`](catalog::Catalog::templates_visible_to), with current
    /// counts of use.
    pub async fn templates_visible_to(&self, team: TeamId) -> Vec<TemplateSummary> {
        self.usage.flush(&*self.store, self.catalog()).await;
        self.catalog().templates_visible_to(team)
    }

    /// Deletes a team's template or snapshot, or only the snapshot with a tag if it has other tags too.
    ///
    /// # Errors
    /// There is no such template, it is another team's, or sandboxes of it are running or paused.
    pub async fn delete_template(&self, team: &Team, text: &str) -> Result<(), ControlError> {
        TemplateRef::parse(text)?;
        let change = self.catalog.begin_change().await?;
        let deletion = self.catalog.find_deletion(team, text)?;
        if deletion.is_whole {
            self.check_unused(&deletion.template, text)?;
            change.delete_template(&deletion.template).await?;
        } else {
            let ids: Vec<BuildId> = deletion.builds.iter().map(|build| build.id).collect();
            change.delete_builds(&ids).await?;
        }
        self.builds.cancel_all_of(&deletion.template);
        self.snapshots.discard_of(&deletion.builds).await;
        tracing::info!(template_id = %deletion.template, team_id = %team.id, "template deleted");
        Ok(())
    }

    /// Removes tags from a team's template, and the warm starts that no tag refers to then.
    ///
    /// # Errors
    /// The team has no such template, the template has none of the tags, or the store failed.
    pub async fn remove_tags(&self, team: &Team, name: &str, tags: &[String]) -> Result<(), ControlError> {
        let change = self.catalog.begin_change().await?;
        let template = change.remove_tags(team, name, tags).await?;
        self.snapshots.drop_stale_warm_starts(&template.id).await;
        Ok(())
    }

    /// Checks that no sandbox of a template is running or paused.
    fn check_unused(&self, id: &TemplateId, text: &str) -> Result<(), ControlError> {
        let sandboxes = self.registry.of_template(id);
        let state = match sandboxes.first() {
            None => return Ok(()),
            Some(info) if info.state == SandboxState::Paused => "paused",
            Some(_) => "running",
        };
        Err(ControlError::Invalid(format!(
            "cannot delete template '{text}' because there are {state} sandboxes using it"
        )))
    }

    /// Makes a finished build the default of the template with this alias, which is created if there is none. Registering the same
    /// build again changes nothing.
    ///
    /// # Errors
    /// The alias is malformed, the engine cannot use the layers, or the store failed.
    pub async fn register_template(
        &self,
        registration: Registration,
    ) -> Result<(TemplateId, BuildId), ControlError> {
        let reference = TemplateRef::parse(&registration.alias)?;
        if reference.namespace.is_some() || reference.tag.is_some() {
            return Err(ControlError::Invalid(format!("invalid template ID: {}", registration.alias)));
        }
        let namespace = match registration.team {
            Some(team) => Some(self.team(team).ok_or(ControlError::TeamNotFound)?.slug.clone()),
            None => None,
        };
        let name = TemplateName { namespace, alias: reference.name };
        let change = self.catalog.begin_change().await?;
        self.register_locked(&change, name, registration).await
    }

    /// Registers a build while no other template changes.
    async fn register_locked(
        &self,
        change: &Change<'_>,
        name: TemplateName,
        registration: Registration,
    ) -> Result<(TemplateId, BuildId), ControlError> {
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let known = self.catalog.template_named(&name);
        if let Some(template) = &known
            && let Some(build) = self.catalog.default_build_named(&name)
            && is_same_build(&build, &registration)
            && template.public == registration.public
        {
            return Ok((template.id.clone(), build.id));
        }
        let template = match known {
            Some(template) => Template { public: registration.public, updated_at: now, ..template },
            None => Template {
                id: TemplateId::generate(),
                team: registration.team,
                names: vec![name],
                public: registration.public,
                created_at: now,
                updated_at: now,
                spawn_count: 0,
                last_spawned: None,
            },
        };
        let build = registered_build(&template, registration, now);
        self.launcher.prepare(&build).await?;
        let tag = TagAssignment {
            template: template.id.clone(),
            tag: DEFAULT_TAG.to_owned(),
            build: build.id,
            created_at: now,
        };
        change.put_template(&template, Some(&build), &[tag]).await?;
        tracing::info!(template_id = %template.id, build_id = %build.id, "template registered");
        Ok((template.id, build.id))
    }

    /// Has the engine prepare every default build, so that the first create of each need not wait for that.
    pub(crate) async fn prepare_default_builds(&self) {
        for build in self.catalog.default_builds() {
            if let Err(error) = self.launcher.prepare(&build).await {
                tracing::warn!(template_id = %build.template, build_id = %build.id, %error, "the engine cannot use a template");
            }
        }
    }
}

fn registered_build(template: &Template, registration: Registration, now: OffsetDateTime) -> Build {
    Build {
        id: BuildId::generate(),
        template: template.id.clone(),
        status: BuildStatus::Ready,
        cpu_count: registration.cpu_count,
        memory_mib: registration.memory_mib,
        disk_mib: registration.disk_mib,
        envd_version: envd_api::VERSION.to_owned(),
        layers: registration.layers,
        config: registration.config,
        snapshot: None,
        failure: None,
        created_at: now,
        finished_at: Some(now),
    }
}

fn is_same_build(build: &Build, registration: &Registration) -> bool {
    build.layers == registration.layers
        && build.config == registration.config
        && (build.cpu_count, build.memory_mib, build.disk_mib)
            == (registration.cpu_count, registration.memory_mib, registration.disk_mib)
}
