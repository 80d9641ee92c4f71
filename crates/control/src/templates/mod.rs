//! Templates that exist: what names mean, lists, registering, publishing, deleting.
//! `catalog` is what is known of them, in memory; how they are built is in `builds`.
//! A change holds the lock for changes, reads the catalog again, writes, and reads it once more.

mod catalog;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ids::{BuildId, TeamId, TemplateId};
use store::{
    Build, BuildConfig, BuildStatus, SandboxState, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use time::OffsetDateTime;

pub(crate) use self::catalog::Catalog;
use self::catalog::Known;
use crate::reference::DEFAULT_TAG;
use crate::{Control, ControlError, TemplateRef};

/// A template with what belongs to it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The template.
    pub template: Template,
    /// Its newest ready build under the tag `default`, or else its newest one.
    pub build: Option<Arc<Build>>,
    /// How many builds it has.
    pub build_count: usize,
}

/// What a create starts from.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) build: Arc<Build>,
    pub(crate) alias: Option<String>,
}

/// A template that is built and ready.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Whose it is; none is everybody's.
    pub team: Option<TeamId>,
    /// Its alias: in the team's namespace, or the global one without a team.
    pub alias: String,
    /// Whether other teams may use it.
    pub public: bool,
    /// Layer digests, uppermost first.
    pub layers: Vec<String>,
    /// Defaults for its sandboxes.
    pub config: BuildConfig,
    /// Processors of a sandbox.
    pub cpu_count: u32,
    /// Memory of a sandbox, MiB.
    pub memory_mib: u32,
    /// Writable disk of a sandbox, MiB.
    pub disk_mib: u32,
}

impl Control {
    /// The build a name means to a team.
    pub(crate) async fn resolve(
        &self,
        team: &Team,
        reference: &TemplateRef,
    ) -> Result<Resolved, ControlError> {
        match self.catalog.resolve(team, reference) {
            Err(ControlError::TemplateNotFound(_) | ControlError::TagNotFound { .. }) => {
                self.catalog.load(&*self.store).await?;
                self.catalog.resolve(team, reference)
            }
            found => found,
        }
    }

    /// The templates a team can see, newest first: its own and everybody's. Snapshots have a list of their own.
    #[must_use]
    pub fn list_templates(&self, team: TeamId) -> Vec<Entry> {
        let inner = self.catalog.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<Entry> = inner
            .templates
            .values()
            .filter(|known| known.template.team.is_none_or(|owner| owner == team))
            .filter(|known| !known.is_snapshot())
            .map(Known::entry)
            .collect();
        entries.sort_by(|a, b| {
            (b.template.created_at, &a.template.id).cmp(&(a.template.created_at, &b.template.id))
        });
        entries
    }

    /// The template behind a name, for a caller who asks whether it exists.
    ///
    /// # Errors
    /// The name is malformed, unknown, or of a private template of another team.
    pub async fn template_by_alias(&self, team: &Team, alias: &str) -> Result<Template, ControlError> {
        let reference = TemplateRef::parse(alias)?;
        let found = match self.catalog.lookup(team, &reference) {
            Some(entry) => Some(entry),
            None => {
                self.catalog.load(&*self.store).await?;
                self.catalog.lookup(team, &reference)
            }
        };
        let entry = found.ok_or_else(|| ControlError::TemplateNotFound(reference.full_name()))?;
        let theirs = entry.template.team.is_none_or(|owner| owner == team.id);
        if !theirs && !entry.template.public {
            return Err(ControlError::Forbidden("You don't have access to this template alias"));
        }
        if reference.tag.is_some() {
            self.catalog.resolve(team, &reference)?;
        }
        Ok(entry.template)
    }

    /// Which template a list filter means; none when there is no such template.
    pub(crate) async fn template_for_filter(
        &self,
        team: &Team,
        text: &str,
    ) -> Result<Option<TemplateId>, ControlError> {
        let reference = TemplateRef::parse(text)
            .map_err(|error| ControlError::Invalid(format!("Invalid template: {error}")))?;
        if text.contains(':') {
            return Err(ControlError::Invalid(
                "Invalid template: tags are not supported here because sandboxes are not tag-scoped"
                    .to_owned(),
            ));
        }
        // A deleted template's sandboxes can still be asked for by its id.
        let by_name = self.catalog.lookup(team, &reference).map(|entry| entry.template.id);
        Ok(by_name.or_else(|| reference.name.parse().ok()))
    }

    /// Deletes a team's template or snapshot, or only what a tag of it means where it has others too.
    ///
    /// # Errors
    /// There is none, it is another team's, or sandboxes of it are running or paused.
    pub async fn delete_template(&self, team: &Team, text: &str) -> Result<(), ControlError> {
        let reference = TemplateRef::parse(text)?;
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let not_found = || ControlError::TemplateNotFound(reference.full_name());
        let (id, builds, is_whole) = {
            let inner = self.catalog.inner.read().unwrap_or_else(PoisonError::into_inner);
            let known = inner.find(team, &reference).ok_or_else(not_found)?;
            if known.template.team != Some(team.id) {
                return Err(not_found());
            }
            let named = known.tagged(reference.tag_or_default());
            let tags: BTreeSet<&String> = known.tags.iter().map(|assignment| &assignment.tag).collect();
            match (text.contains(':'), named) {
                (true, None) => return Err(not_found()),
                (true, Some(build)) if tags.len() > 1 && build.is_snapshot() => {
                    (known.template.id.clone(), vec![build], false)
                }
                _ => (known.template.id.clone(), known.builds.clone(), true),
            }
        };
        if is_whole {
            self.check_unused(&id, text)?;
            self.store.delete_template(&id).await?;
        } else {
            let ids: Vec<BuildId> = builds.iter().map(|build| build.id).collect();
            self.store.delete_builds(&ids).await?;
        }
        self.jobs.cancel_others(&id, None);
        self.catalog.load(&*self.store).await?;
        self.discard_states_of(&builds).await;
        tracing::info!(template_id = %id, team_id = %team.id, "template deleted");
        Ok(())
    }

    /// Makes a team's template public or private.
    ///
    /// # Errors
    /// There is no such template of the team's.
    pub async fn publish_template(
        &self,
        team: &Team,
        text: &str,
        public: bool,
    ) -> Result<Template, ControlError> {
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let known = self.own_template(team, text)?;
        let updated_at = truncate_to_micros(OffsetDateTime::now_utc());
        let template = Template { public, updated_at, ..known };
        self.store.put_template(&template, None, &[]).await?;
        self.catalog.load(&*self.store).await?;
        Ok(template)
    }

    /// A team's template with its builds, newest first.
    ///
    /// # Errors
    /// There is no such template of the team's.
    pub async fn template_with_builds(
        &self,
        team: &Team,
        text: &str,
    ) -> Result<(Entry, Vec<Arc<Build>>), ControlError> {
        self.catalog.load(&*self.store).await?;
        let template = self.own_template(team, text)?;
        let builds = self.catalog.builds_of(&template.id);
        let reference = TemplateRef::parse(template.id.as_str())?;
        let entry = self.catalog.lookup(team, &reference);
        let entry = entry.ok_or_else(|| ControlError::TemplateNotFound(text.to_owned()))?;
        Ok((entry, builds))
    }

    /// The templates that belong to everybody, by id.
    #[must_use]
    pub fn default_templates(&self) -> Vec<Entry> {
        let inner = self.catalog.inner.read().unwrap_or_else(PoisonError::into_inner);
        let everybodys = inner.templates.values().filter(|known| known.template.team.is_none());
        let mut entries: Vec<Entry> =
            everybodys.map(|known| Entry { build: known.tagged(DEFAULT_TAG), ..known.entry() }).collect();
        entries.sort_by(|a, b| a.template.id.cmp(&b.template.id));
        entries
    }

    /// Removes warm starts that nothing begins from any more. Their builds stay, and would start cold.
    pub(crate) async fn drop_stale_warm_starts(&self, template: &TemplateId) {
        for build in self.catalog.stale_warm_starts(template) {
            let cold = Build { snapshot: None, ..(*build).clone() };
            match self.store.put_build(&cold).await {
                Ok(_) => self.discard_states_of(&[build]).await,
                Err(error) => tracing::warn!(%error, "an old warm start could not be given up"),
            }
        }
        if let Err(error) = self.catalog.load(&*self.store).await {
            tracing::warn!(%error, "the catalog could not be read again");
        }
    }

    fn check_unused(&self, id: &TemplateId, text: &str) -> Result<(), ControlError> {
        let users = self.table.using(id);
        let state = match users.first() {
            None => return Ok(()),
            Some(info) if info.state == SandboxState::Paused => "paused",
            Some(_) => "running",
        };
        Err(ControlError::Invalid(format!(
            "cannot delete template '{text}' because there are {state} sandboxes using it"
        )))
    }

    /// Makes a finished build the default of the template of this name; both are made as needed. Registering the same
    /// build again changes nothing.
    ///
    /// # Errors
    /// The name is malformed, the engine cannot use the layers, or the store failed.
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

        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let known = {
            let inner = self.catalog.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner
                .names
                .get(&name)
                .and_then(|id| inner.templates.get(id))
                .map(|known| (known.template.clone(), known.tagged(DEFAULT_TAG)))
        };
        let mut template = match &known {
            Some((template, _)) => template.clone(),
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
        if let Some((_, Some(build))) = &known
            && same_build(build, &registration)
            && template.public == registration.public
        {
            return Ok((template.id, build.id));
        }
        template.public = registration.public;
        template.updated_at = now;
        let build = Build {
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
        };
        self.prepare(&build).await?;
        let tag = TagAssignment {
            template: template.id.clone(),
            tag: DEFAULT_TAG.to_owned(),
            build: build.id,
            created_at: now,
        };
        self.store.put_template(&template, Some(&build), &[tag]).await?;
        self.catalog.load(&*self.store).await?;
        tracing::info!(template_id = %template.id, build_id = %build.id, "template registered");
        Ok((template.id, build.id))
    }

    /// Has the engine make a build ready, once.
    pub(crate) async fn prepare(&self, build: &Build) -> Result<(), ControlError> {
        let prepared = |set: &Mutex<HashSet<BuildId>>| {
            set.lock().unwrap_or_else(PoisonError::into_inner).contains(&build.id)
        };
        if prepared(&self.catalog.prepared) {
            return Ok(());
        }
        self.engine
            .prepare(&self.image(&build.layers, build.config.engine.as_deref()), true)
            .await
            .map_err(crate::sandboxes::launch::start_error)?;
        self.catalog.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(build.id);
        Ok(())
    }

    /// Makes every default build ready, so that the first create of each does not pay for it.
    pub(crate) async fn prepare_all(&self) {
        let builds: Vec<Arc<Build>> = {
            let inner = self.catalog.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner.templates.values().filter_map(|known| known.tagged(DEFAULT_TAG)).collect()
        };
        for build in builds {
            if let Err(error) = self.prepare(&build).await {
                tracing::warn!(template_id = %build.template, build_id = %build.id, %error, "template is not usable");
            }
        }
    }
}

fn same_build(build: &Build, registration: &Registration) -> bool {
    build.layers == registration.layers
        && build.config == registration.config
        && (build.cpu_count, build.memory_mib, build.disk_mib)
            == (registration.cpu_count, registration.memory_mib, registration.disk_mib)
}
