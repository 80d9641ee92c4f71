//! [`Catalog`]: all templates, builds and tags in memory, since every create asks for them; [`TemplateRef`], how requests name them.
//! Changes are written to the store first, then the whole catalog is read again ([`Change`]). What another process registered is
//! found by reading the store again when a name is unknown. How templates are built is in the crate `builds`.
#![forbid(unsafe_code)]

mod change;
mod index;
mod lists;
mod reference;
mod tags;

use std::sync::Arc;

use ids::{BuildId, TemplateId};
use parking_lot::RwLock;
use store::{Build, Store, StoreError, Team, Template};

use index::Index;

pub use change::Change;
pub use lists::Deletion;
pub use reference::{DEFAULT_TAG, TemplateRef};
pub use tags::{TagInfo, TagPage, normalised_tag};

/// Why a template or tag cannot be found, seen or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A name, tag or argument is malformed.
    #[error("{0}")]
    Invalid(String),
    /// There is no such template, or the caller cannot see it.
    #[error("template '{0}' not found")]
    TemplateNotFound(String),
    /// The template has no ready build with this tag.
    #[error("tag '{tag}' does not exist for template '{template}'")]
    TagNotFound {
        /// The tag asked for.
        tag: String,
        /// The template asked for.
        template: String,
    },
    /// The store failed.
    #[error("the server's database failed")]
    Store(#[from] StoreError),
}

/// A template with its current build.
#[derive(Debug, Clone)]
pub struct TemplateSummary {
    /// The template.
    pub template: Template,
    /// Its newest ready build with the tag `default`, or else its newest build.
    pub build: Option<Arc<Build>>,
    /// Number of its builds.
    pub build_count: usize,
}

/// The build that a create starts from.
#[derive(Debug, Clone)]
pub struct ResolvedTemplate {
    /// The build.
    pub build: Arc<Build>,
    /// The template's first alias.
    pub alias: Option<String>,
}

/// All templates, builds and tags.
pub struct Catalog {
    store: Arc<dyn Store>,
    index: RwLock<Index>,
    /// Held by a [`Change`], from its look-up to its last write.
    changing: tokio::sync::Mutex<()>,
}

impl Catalog {
    /// Reads the catalog from the store.
    ///
    /// # Errors
    /// The store failed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let index = RwLock::new(Index::read(&*store).await?);
        Ok(Self { store, index, changing: tokio::sync::Mutex::default() })
    }

    /// Reads the catalog again, with what other processes wrote meanwhile.
    ///
    /// # Errors
    /// The store failed; the catalog is as before.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let fresh = Index::read(&*self.store).await?;
        *self.index.write() = fresh;
        Ok(())
    }

    /// Returns the build that a name refers to for a team, and reads the store again if it is unknown.
    ///
    /// # Errors
    /// No such template that the team may use, or no ready build with the tag.
    pub async fn resolve(
        &self,
        team: &Team,
        reference: &TemplateRef,
    ) -> Result<ResolvedTemplate, CatalogError> {
        match self.resolve_known(team, reference) {
            Err(CatalogError::TemplateNotFound(_) | CatalogError::TagNotFound { .. }) => {
                self.reload().await?;
                self.resolve_known(team, reference)
            }
            found => found,
        }
    }

    fn resolve_known(&self, team: &Team, reference: &TemplateRef) -> Result<ResolvedTemplate, CatalogError> {
        self.index.read().resolve(team, reference)
    }

    /// Returns the template with this id.
    #[must_use]
    pub fn template(&self, id: &TemplateId) -> Option<Template> {
        self.index.read().templates.get(id).map(|indexed| indexed.template.clone())
    }

    /// Returns the build with this id.
    #[must_use]
    pub fn build(&self, id: BuildId) -> Option<Arc<Build>> {
        let index = self.index.read();
        index.templates.values().flat_map(|indexed| &indexed.builds).find(|build| build.id == id).cloned()
    }

    /// Returns the template that a name refers to, for a caller who asks whether it exists.
    ///
    /// # Errors
    /// The name is malformed, unknown, or of a private template of another team.
    pub async fn template_by_alias(&self, team: &Team, alias: &str) -> Result<Template, CatalogError> {
        let reference = TemplateRef::parse(alias)?;
        // A private template of another team is treated like none, up to the time that it takes.
        let visible = || {
            let template = self.lookup(team, &reference)?.template;
            let is_own = template.team.is_none_or(|owner| owner == team.id);
            (is_own || template.public).then_some(template)
        };
        let found = match visible() {
            Some(template) => Some(template),
            None => {
                self.reload().await?;
                visible()
            }
        };
        let template = found.ok_or_else(|| CatalogError::TemplateNotFound(reference.full_name()))?;
        if reference.tag.is_some() {
            self.resolve_known(team, &reference)?;
        }
        Ok(template)
    }

    /// Returns the template that a list filter names; none when there is no such template.
    ///
    /// # Errors
    /// The name is malformed or has a tag.
    pub fn template_for_filter(&self, team: &Team, text: &str) -> Result<Option<TemplateId>, CatalogError> {
        let reference = TemplateRef::parse(text)
            .map_err(|error| CatalogError::Invalid(format!("Invalid template: {error}")))?;
        if text.contains(':') {
            return Err(CatalogError::Invalid(
                "Invalid template: tags are not supported here because sandboxes are not tag-scoped"
                    .to_owned(),
            ));
        }
        // Sandboxes of a deleted template can still be asked for by its id.
        let by_name = self.lookup(team, &reference).map(|summary| summary.template.id);
        Ok(by_name.or_else(|| reference.name.parse().ok()))
    }

    /// Returns a team's own template by name or id.
    ///
    /// # Errors
    /// There is no such template, or it is another team's.
    pub fn own_template(&self, team: &Team, text: &str) -> Result<Template, CatalogError> {
        let reference = TemplateRef::parse(text)?;
        let found = self.lookup(team, &reference).map(|summary| summary.template);
        found
            .filter(|template| template.team == Some(team.id))
            .ok_or_else(|| CatalogError::TemplateNotFound(reference.full_name()))
    }

    fn lookup(&self, team: &Team, reference: &TemplateRef) -> Option<TemplateSummary> {
        self.index.read().find(team, reference).map(index::IndexedTemplate::summary)
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}
