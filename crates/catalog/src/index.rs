//! The catalog's data: templates with their builds and tag assignments, and the rules by which names and tags are resolved.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ids::{BuildId, TeamId, TemplateId};
use store::{Build, BuildStatus, Store, StoreError, TagAssignment, Team, Template, TemplateName};

use super::{CatalogError, DEFAULT_TAG, ResolvedTemplate, TemplateRef, TemplateSummary};

#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) templates: HashMap<TemplateId, IndexedTemplate>,
    pub(crate) names: HashMap<TemplateName, TemplateId>,
}

#[derive(Debug)]
pub(crate) struct IndexedTemplate {
    pub(crate) template: Template,
    /// Oldest first.
    pub(crate) builds: Vec<Arc<Build>>,
    /// Oldest first.
    pub(crate) tags: Vec<TagAssignment>,
}

impl IndexedTemplate {
    /// Returns the build that a tag refers to: that of the last assignment whose build is ready.
    pub(crate) fn tagged(&self, tag: &str) -> Option<Arc<Build>> {
        self.tags.iter().rev().filter(|assignment| assignment.tag == tag).find_map(|assignment| {
            let build = self.builds.iter().find(|build| build.id == assignment.build)?;
            (build.status == BuildStatus::Ready).then(|| Arc::clone(build))
        })
    }

    /// Returns the names of all tags ever assigned.
    pub(crate) fn tag_names(&self) -> BTreeSet<&String> {
        self.tags.iter().map(|assignment| &assignment.tag).collect()
    }

    /// Returns the builds that any tag refers to.
    pub(crate) fn tagged_builds(&self) -> HashSet<BuildId> {
        self.tags.iter().filter_map(|assignment| Some(self.tagged(&assignment.tag)?.id)).collect()
    }

    fn usable_by(&self, team: TeamId) -> bool {
        self.template.public || self.template.team.is_none_or(|owner| owner == team)
    }

    /// Returns whether all builds are snapshots of sandboxes.
    pub(crate) fn is_snapshot(&self) -> bool {
        !self.builds.is_empty() && self.builds.iter().all(|build| build.is_snapshot())
    }

    pub(crate) fn summary(&self) -> TemplateSummary {
        TemplateSummary {
            template: self.template.clone(),
            build: self.tagged(DEFAULT_TAG).or_else(|| self.builds.last().cloned()),
            build_count: self.builds.len(),
        }
    }
}

impl Index {
    pub(crate) async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let (templates, builds, tags) =
            (store.templates().await?, store.builds().await?, store.tag_assignments().await?);
        let mut index = Self::default();
        for template in templates {
            for name in &template.names {
                index.names.insert(name.clone(), template.id.clone());
            }
            let indexed = IndexedTemplate { template, builds: Vec::new(), tags: Vec::new() };
            index.templates.insert(indexed.template.id.clone(), indexed);
        }
        for build in builds {
            if let Some(indexed) = index.templates.get_mut(&build.template) {
                indexed.builds.push(Arc::new(build));
            }
        }
        for tag in tags {
            if let Some(indexed) = index.templates.get_mut(&tag.template) {
                indexed.tags.push(tag);
            }
        }
        Ok(index)
    }

    /// Finds a template by name. With a namespace, only that is searched; a bare alias is searched in the team's namespace, then
    /// in the global one, then among the ids.
    pub(crate) fn find(&self, team: &Team, reference: &TemplateRef) -> Option<&IndexedTemplate> {
        let named = |namespace: Option<&str>| {
            let name =
                TemplateName { namespace: namespace.map(str::to_owned), alias: reference.name.clone() };
            self.names.get(&name)
        };
        let id = match &reference.namespace {
            Some(namespace) => named(Some(namespace))?,
            None => match named(Some(&team.slug)).or_else(|| named(None)) {
                Some(id) => id,
                None => return self.templates.get(&reference.name.parse().ok()?),
            },
        };
        self.templates.get(id)
    }

    pub(crate) fn by_name(&self, name: &TemplateName) -> Option<&IndexedTemplate> {
        self.templates.get(self.names.get(name)?)
    }

    pub(crate) fn resolve(
        &self,
        team: &Team,
        reference: &TemplateRef,
    ) -> Result<ResolvedTemplate, CatalogError> {
        let not_found = || CatalogError::TemplateNotFound(reference.full_name());
        let indexed = self.find(team, reference).ok_or_else(not_found)?;
        if !indexed.usable_by(team.id) {
            return Err(not_found());
        }
        let build = indexed.tagged(reference.tag_or_default()).ok_or_else(|| CatalogError::TagNotFound {
            tag: reference.tag_or_default().to_owned(),
            template: reference.full_name(),
        })?;
        let alias = indexed.template.names.first().map(|name| name.alias.clone());
        Ok(ResolvedTemplate { build, alias })
    }
}
