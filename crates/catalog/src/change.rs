//! [`Change`]: the right to change templates, held from the look-up that a change depends on to its last write.

use ids::{BuildId, TemplateId};
use store::{Build, StoreError, TagAssignment, Team, Template, truncate_to_micros};
use time::OffsetDateTime;
use tokio::sync::MutexGuard;

use super::{Catalog, CatalogError};

/// Exclusive right to change templates; others wait until it is dropped. Each method writes to the store and reads the catalog
/// again.
#[derive(Debug)]
pub struct Change<'a> {
    pub(crate) catalog: &'a Catalog,
    _changing: MutexGuard<'a, ()>,
}

impl Catalog {
    /// Waits for the right to change templates, then reads the catalog again.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin_change(&self) -> Result<Change<'_>, StoreError> {
        let changing = self.changing.lock().await;
        self.reload().await?;
        Ok(Change { catalog: self, _changing: changing })
    }

    /// Writes a build of a known template, which needs no [`Change`] because a build has one writer. Returns false when the
    /// template does not exist any more.
    ///
    /// # Errors
    /// The store failed.
    pub async fn put_build(&self, build: &Build) -> Result<bool, StoreError> {
        let exists = self.store.put_build(build).await?;
        self.reload().await?;
        Ok(exists)
    }

    /// Makes a team's template public or private.
    ///
    /// # Errors
    /// The team has no such template, or the store failed.
    pub async fn publish(&self, team: &Team, text: &str, public: bool) -> Result<Template, CatalogError> {
        let change = self.begin_change().await?;
        let known = self.own_template(team, text)?;
        let updated_at = truncate_to_micros(OffsetDateTime::now_utc());
        let template = Template { public, updated_at, ..known };
        change.put_template(&template, None, &[]).await?;
        Ok(template)
    }
}

impl Change<'_> {
    /// Writes a template, together with a build and tags.
    ///
    /// # Errors
    /// The store failed.
    pub async fn put_template(
        &self,
        template: &Template,
        build: Option<&Build>,
        tags: &[TagAssignment],
    ) -> Result<(), StoreError> {
        self.catalog.store.put_template(template, build, tags).await?;
        self.catalog.reload().await
    }

    /// Deletes a template with all its builds and tags.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete_template(&self, id: &TemplateId) -> Result<(), StoreError> {
        self.catalog.store.delete_template(id).await?;
        self.catalog.reload().await
    }

    /// Deletes builds and the tags that refer to them.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete_builds(&self, ids: &[BuildId]) -> Result<(), StoreError> {
        self.catalog.store.delete_builds(ids).await?;
        self.catalog.reload().await
    }
}
