//! Lists: of a team's templates, of a template's builds, of snapshots and of warm starts.

use std::sync::Arc;

use ids::{BuildId, SnapshotId, TeamId, TemplateId};
use store::{Build, BuildStatus, Team, Template, TemplateName};
use time::OffsetDateTime;

use super::index::IndexedTemplate;
use super::{Catalog, CatalogError, DEFAULT_TAG, TemplateRef, TemplateSummary};

/// What a request to delete a template or one of its tags refers to.
#[derive(Debug)]
pub struct Deletion {
    /// The template.
    pub template: TemplateId,
    /// The builds that are deleted.
    pub builds: Vec<Arc<Build>>,
    /// Whether the whole template is deleted, and not only a tagged snapshot of it.
    pub is_whole: bool,
}

impl Catalog {
    /// Returns the templates that a team can see, newest first: its own and the public default ones. Snapshots are not among them.
    #[must_use]
    pub fn templates_visible_to(&self, team: TeamId) -> Vec<TemplateSummary> {
        let index = self.index.read();
        let visible = index
            .templates
            .values()
            .filter(|indexed| indexed.template.team.is_none_or(|owner| owner == team));
        let mut summaries: Vec<TemplateSummary> =
            visible.filter(|indexed| !indexed.is_snapshot()).map(IndexedTemplate::summary).collect();
        summaries.sort_by(|a, b| {
            (b.template.created_at, &a.template.id).cmp(&(a.template.created_at, &b.template.id))
        });
        summaries
    }

    /// Adds to the counts of started sandboxes, as `(template, number, time of the last)`. The store's are the caller's business.
    pub fn count_spawns(&self, spawns: &[(TemplateId, u64, OffsetDateTime)]) {
        let mut index = self.index.write();
        for (id, count, at) in spawns {
            if let Some(indexed) = index.templates.get_mut(id) {
                indexed.template.spawn_count += count;
                indexed.template.last_spawned = Some(*at);
            }
        }
    }

    /// Returns the templates without an owner, by id.
    #[must_use]
    pub fn default_templates(&self) -> Vec<TemplateSummary> {
        let index = self.index.read();
        let without_owner = index.templates.values().filter(|indexed| indexed.template.team.is_none());
        let mut summaries: Vec<TemplateSummary> = without_owner
            .map(|indexed| TemplateSummary { build: indexed.tagged(DEFAULT_TAG), ..indexed.summary() })
            .collect();
        summaries.sort_by(|a, b| a.template.id.cmp(&b.template.id));
        summaries
    }

    /// Returns a team's own template with its builds, newest first.
    ///
    /// # Errors
    /// The team has no such template, or the store failed.
    pub async fn template_with_builds(
        &self,
        team: &Team,
        text: &str,
    ) -> Result<(TemplateSummary, Vec<Arc<Build>>), CatalogError> {
        self.reload().await?;
        let template = self.own_template(team, text)?;
        let index = self.index.read();
        let indexed = index.templates.get(&template.id);
        let indexed = indexed.ok_or_else(|| CatalogError::TemplateNotFound(text.to_owned()))?;
        Ok((indexed.summary(), indexed.builds.iter().rev().cloned().collect()))
    }

    /// Returns the template of this name.
    #[must_use]
    pub fn template_named(&self, name: &TemplateName) -> Option<Template> {
        self.index.read().by_name(name).map(|indexed| indexed.template.clone())
    }

    /// Returns the ready build that the template of this name has with the tag `default`.
    #[must_use]
    pub fn default_build_named(&self, name: &TemplateName) -> Option<Arc<Build>> {
        self.index.read().by_name(name)?.tagged(DEFAULT_TAG)
    }

    /// Returns the ready build with the tag `default` of this template.
    #[must_use]
    pub fn default_build(&self, id: &TemplateId) -> Option<Arc<Build>> {
        self.index.read().templates.get(id)?.tagged(DEFAULT_TAG)
    }

    /// Returns the ready build with the tag `default` of every template.
    #[must_use]
    pub fn default_builds(&self) -> Vec<Arc<Build>> {
        self.index.read().templates.values().filter_map(|indexed| indexed.tagged(DEFAULT_TAG)).collect()
    }

    /// Returns whether any tag refers to this build, so that creates may still start from it.
    #[must_use]
    pub fn is_tagged(&self, build: &Build) -> bool {
        let index = self.index.read();
        let indexed = index.templates.get(&build.template);
        indexed.is_some_and(|indexed| indexed.tagged_builds().contains(&build.id))
    }

    /// Returns builds that are waiting or in progress.
    #[must_use]
    pub fn open_builds(&self) -> Vec<Arc<Build>> {
        let is_open =
            |build: &&Arc<Build>| matches!(build.status, BuildStatus::Waiting | BuildStatus::Building);
        let index = self.index.read();
        index.templates.values().flat_map(|indexed| &indexed.builds).filter(is_open).cloned().collect()
    }

    /// Returns a template's builds that wait for their start and have one of these tags.
    #[must_use]
    pub fn waiting_builds(&self, id: &TemplateId, tags: &[String]) -> Vec<Arc<Build>> {
        let index = self.index.read();
        let Some(indexed) = index.templates.get(id) else { return Vec::new() };
        let has_tag = |build: &Build| {
            indexed.tags.iter().any(|assigned| assigned.build == build.id && tags.contains(&assigned.tag))
        };
        let waiting = indexed.builds.iter().filter(|build| build.status == BuildStatus::Waiting);
        waiting.filter(|build| has_tag(build)).cloned().collect()
    }

    /// Returns a template's builds with a warm start that no tag refers to any more.
    #[must_use]
    pub fn stale_warm_starts(&self, id: &TemplateId) -> Vec<Arc<Build>> {
        let has_warm_start =
            |build: &Build| build.snapshot.as_ref().is_some_and(|snapshot| snapshot.warm_start);
        self.untagged(id, has_warm_start)
    }

    /// Returns a template's snapshots of sandboxes that no tag refers to any more.
    #[must_use]
    pub fn untagged_snapshots(&self, id: &TemplateId) -> Vec<Arc<Build>> {
        self.untagged(id, Build::is_snapshot)
    }

    fn untagged(&self, id: &TemplateId, is_wanted: impl Fn(&Build) -> bool) -> Vec<Arc<Build>> {
        let index = self.index.read();
        let Some(indexed) = index.templates.get(id) else { return Vec::new() };
        let tagged = indexed.tagged_builds();
        let untagged = indexed.builds.iter().filter(|build| is_wanted(build) && !tagged.contains(&build.id));
        untagged.cloned().collect()
    }

    /// Returns the engine's snapshots of all builds, warm starts included.
    #[must_use]
    pub fn snapshot_ids(&self) -> Vec<SnapshotId> {
        let index = self.index.read();
        let builds = index.templates.values().flat_map(|indexed| &indexed.builds);
        builds.filter_map(|build| Some(build.snapshot.as_ref()?.id)).collect()
    }

    /// Returns a team's snapshots of sandboxes: each with its template and tag.
    #[must_use]
    pub fn snapshots_of(&self, team: TeamId) -> Vec<(Template, String, Arc<Build>)> {
        let index = self.index.read();
        let owned = index.templates.values().filter(|indexed| indexed.template.team == Some(team));
        let snapshots = owned.flat_map(|indexed| {
            indexed.tag_names().into_iter().filter_map(|tag| {
                let build = indexed.tagged(tag).filter(|build| build.is_snapshot())?;
                Some((indexed.template.clone(), tag.clone(), build))
            })
        });
        snapshots.collect()
    }

    /// Returns what a request to delete `text` refers to: a team's template, or a tagged snapshot of one that has other tags too.
    ///
    /// # Errors
    /// The team has no such template or tag.
    pub fn find_deletion(&self, team: &Team, text: &str) -> Result<Deletion, CatalogError> {
        let reference = TemplateRef::parse(text)?;
        let not_found = || CatalogError::TemplateNotFound(reference.full_name());
        let index = self.index.read();
        let indexed = index.find(team, &reference).ok_or_else(not_found)?;
        if indexed.template.team != Some(team.id) {
            return Err(not_found());
        }
        let template = indexed.template.id.clone();
        match (text.contains(':'), indexed.tagged(reference.tag_or_default())) {
            (true, None) => Err(not_found()),
            (true, Some(build)) if indexed.tag_names().len() > 1 && build.is_snapshot() => {
                Ok(Deletion { template, builds: vec![build], is_whole: false })
            }
            _ => Ok(Deletion { template, builds: indexed.builds.clone(), is_whole: true }),
        }
    }

    /// Returns a team's own build of a template.
    #[must_use]
    pub fn own_build(&self, team: &Team, template: &TemplateId, id: BuildId) -> Option<Arc<Build>> {
        let index = self.index.read();
        let indexed = index.templates.get(template)?;
        if indexed.template.team != Some(team.id) {
            return None;
        }
        indexed.builds.iter().find(|build| build.id == id).cloned()
    }
}
