//! What templates, builds and tags there are, in memory: every create asks it.
//! Writes go to the store first, and then the whole is read again.
//! Names another process registered are found by reading the store again on a miss.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ids::{BuildId, SnapshotId, TeamId, TemplateId};
use store::{Build, BuildStatus, Store, StoreError, TagAssignment, Team, Template, TemplateName};

use super::{Entry, Resolved};
use crate::builds::TagInfo;
use crate::reference::DEFAULT_TAG;
use crate::{ControlError, TemplateRef};

#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(super) inner: RwLock<Inner>,
    /// Builds the engine has made ready.
    pub(super) prepared: Mutex<HashSet<BuildId>>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) templates: HashMap<TemplateId, Known>,
    pub(super) names: HashMap<TemplateName, TemplateId>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) template: Template,
    /// Oldest first.
    pub(super) builds: Vec<Arc<Build>>,
    /// Oldest first.
    pub(super) tags: Vec<TagAssignment>,
}

impl Known {
    /// The build a tag means: the last assignment whose build is ready.
    pub(super) fn tagged(&self, tag: &str) -> Option<Arc<Build>> {
        self.tags.iter().rev().filter(|assignment| assignment.tag == tag).find_map(|assignment| {
            let build = self.builds.iter().find(|build| build.id == assignment.build)?;
            (build.status == BuildStatus::Ready).then(|| Arc::clone(build))
        })
    }

    fn usable_by(&self, team: TeamId) -> bool {
        self.template.public || self.template.team.is_none_or(|owner| owner == team)
    }

    /// Whether nothing but captured sandboxes was ever put under this name.
    pub(super) fn is_snapshot(&self) -> bool {
        !self.builds.is_empty() && self.builds.iter().all(|build| build.is_snapshot())
    }

    pub(super) fn entry(&self) -> Entry {
        Entry {
            template: self.template.clone(),
            build: self.tagged(DEFAULT_TAG).or_else(|| self.builds.last().cloned()),
            build_count: self.builds.len(),
        }
    }
}

impl Catalog {
    pub(crate) async fn load(&self, store: &dyn Store) -> Result<(), StoreError> {
        let (templates, builds, tags) =
            (store.templates().await?, store.builds().await?, store.tag_assignments().await?);
        let mut fresh = Inner::default();
        for template in templates {
            for name in &template.names {
                fresh.names.insert(name.clone(), template.id.clone());
            }
            fresh
                .templates
                .insert(template.id.clone(), Known { template, builds: Vec::new(), tags: Vec::new() });
        }
        for build in builds {
            if let Some(known) = fresh.templates.get_mut(&build.template) {
                known.builds.push(Arc::new(build));
            }
        }
        for tag in tags {
            if let Some(known) = fresh.templates.get_mut(&tag.template) {
                known.tags.push(tag);
            }
        }
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(crate) fn resolve(&self, team: &Team, reference: &TemplateRef) -> Result<Resolved, ControlError> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let not_found = || ControlError::TemplateNotFound(reference.full_name());
        let known = inner.find(team, reference).ok_or_else(not_found)?;
        if !known.usable_by(team.id) {
            return Err(not_found());
        }
        let build = known.tagged(reference.tag_or_default()).ok_or_else(|| ControlError::TagNotFound {
            tag: reference.tag_or_default().to_owned(),
            template: reference.full_name(),
        })?;
        let alias = known.template.names.first().map(|name| name.alias.clone());
        Ok(Resolved { build, alias })
    }

    /// The template of this name.
    pub(crate) fn by_name(&self, name: &TemplateName) -> Option<Template> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let known = inner.names.get(name).and_then(|id| inner.templates.get(id))?;
        Some(known.template.clone())
    }

    /// The template with this id.
    pub(crate) fn by_id(&self, id: &TemplateId) -> Option<Template> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.templates.get(id).map(|known| known.template.clone())
    }

    /// What a tag of a template means.
    pub(crate) fn tagged(&self, id: &TemplateId, tag: &str) -> Option<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.templates.get(id)?.tagged(tag)
    }

    /// What the template of this name means without a tag.
    pub(crate) fn ready_build(&self, name: &TemplateName) -> Option<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.templates.get(inner.names.get(name)?)?.tagged(DEFAULT_TAG)
    }

    /// The build with this id.
    pub(crate) fn build(&self, id: BuildId) -> Option<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.templates.values().flat_map(|known| &known.builds).find(|build| build.id == id).cloned()
    }

    /// A template's builds, newest first.
    pub(crate) fn builds_of(&self, id: &TemplateId) -> Vec<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.templates.get(id).map(|known| known.builds.iter().rev().cloned().collect()).unwrap_or_default()
    }

    /// Builds that have not ended.
    pub(crate) fn open_builds(&self) -> Vec<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let builds = inner.templates.values().flat_map(|known| &known.builds);
        let is_open =
            |build: &&Arc<Build>| matches!(build.status, BuildStatus::Waiting | BuildStatus::Building);
        builds.filter(is_open).cloned().collect()
    }

    /// A template's builds that wait for their start and have one of these tags.
    pub(crate) fn waiting_builds(&self, id: &TemplateId, tags: &[String]) -> Vec<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.templates.get(id) else { return Vec::new() };
        let tagged = |build: &Build| {
            known.tags.iter().any(|assigned| assigned.build == build.id && tags.contains(&assigned.tag))
        };
        let waiting = known.builds.iter().filter(|build| build.status == BuildStatus::Waiting);
        waiting.filter(|build| tagged(build)).cloned().collect()
    }

    /// A template's assignments whose builds are ready, oldest first.
    pub(crate) fn ready_assignments(&self, id: &TemplateId) -> Vec<TagInfo> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.templates.get(id) else { return Vec::new() };
        let ready = known.tags.iter().filter_map(|assignment| {
            let build = known.builds.iter().find(|build| build.id == assignment.build)?;
            let is_ready = build.status == BuildStatus::Ready;
            is_ready.then(|| TagInfo { assignment: assignment.clone(), build: Arc::clone(build) })
        });
        ready.collect()
    }

    /// A template's warm starts that no tag means any more.
    pub(super) fn stale_warm_starts(&self, id: &TemplateId) -> Vec<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.templates.get(id) else { return Vec::new() };
        let meant: HashSet<BuildId> =
            known.tags.iter().filter_map(|assigned| Some(known.tagged(&assigned.tag)?.id)).collect();
        let is_stale = |build: &&Arc<Build>| {
            build.snapshot.as_ref().is_some_and(|state| state.warm_start) && !meant.contains(&build.id)
        };
        known.builds.iter().filter(is_stale).cloned().collect()
    }

    /// Every captured state that a build is made of.
    pub(crate) fn captured_states(&self) -> Vec<SnapshotId> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let builds = inner.templates.values().flat_map(|known| &known.builds);
        builds.filter_map(|build| Some(build.snapshot.as_ref()?.id)).collect()
    }

    /// A team's snapshots: each tag that means a captured state.
    pub(crate) fn snapshots_of(&self, team: TeamId) -> Vec<(Template, String, Arc<Build>)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let owned = inner.templates.values().filter(|known| known.template.team == Some(team));
        owned
            .flat_map(|known| {
                let tags: BTreeSet<&String> = known.tags.iter().map(|assignment| &assignment.tag).collect();
                tags.into_iter().filter_map(|tag| {
                    let build = known.tagged(tag).filter(|build| build.is_snapshot())?;
                    Some((known.template.clone(), tag.clone(), build))
                })
            })
            .collect()
    }

    /// A template's captured states that no tag means.
    pub(crate) fn nameless_snapshots(&self, template: &TemplateId) -> Vec<Arc<Build>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.templates.get(template) else { return Vec::new() };
        let named: HashSet<BuildId> = known
            .tags
            .iter()
            .filter_map(|assignment| known.tagged(&assignment.tag).map(|build| build.id))
            .collect();
        let nameless = known.builds.iter().filter(|build| build.is_snapshot() && !named.contains(&build.id));
        nameless.cloned().collect()
    }

    pub(crate) fn lookup(&self, team: &Team, reference: &TemplateRef) -> Option<Entry> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.find(team, reference).map(Known::entry)
    }
}

impl Inner {
    /// An explicit namespace is the only one looked into; a bare alias is sought in the caller's, then in the global
    /// one, then among the ids.
    pub(super) fn find(&self, team: &Team, reference: &TemplateRef) -> Option<&Known> {
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
}
