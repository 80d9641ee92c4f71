//! Tags: movable names of a template's builds. A tag refers to the build of its last assignment whose build is ready;
//! assignments are a history, so moving a tag adds one.
//! Protocol: `/templates/tags` and `/templates/{id}/tags…`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ids::BuildId;
use store::{Build, BuildStatus, TagAssignment, Team, Template, truncate_to_micros};
use time::OffsetDateTime;

use super::{Catalog, CatalogError, Change, TemplateRef};

/// An assignment of a tag to a ready build.
#[derive(Debug, Clone)]
pub struct TagInfo {
    /// The assignment.
    pub assignment: TagAssignment,
    /// The assigned build.
    pub build: Arc<Build>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct TagPage<T> {
    /// The items of the page.
    pub items: Vec<T>,
    /// Index of the next page's first item; none on the last page.
    pub next: Option<usize>,
}

impl<T> TagPage<T> {
    /// Returns the page of `all` that begins at index `from`.
    #[must_use]
    pub fn of(all: Vec<T>, from: usize, limit: usize) -> Self {
        let next = from.saturating_add(limit);
        let next = (next < all.len()).then_some(next);
        Self { items: all.into_iter().skip(from).take(limit).collect(), next }
    }
}

/// Returns a tag in lower case without surrounding spaces.
///
/// # Errors
/// The tag is malformed.
pub fn normalised_tag(tag: &str) -> Result<String, CatalogError> {
    let tag = tag.trim().to_lowercase();
    TemplateRef::parse(&format!("x:{tag}"))?;
    Ok(tag)
}

impl Catalog {
    /// Assigns tags to the build that `target` (`name[:tag]`) refers to; returns the build and the normalised tags.
    ///
    /// # Errors
    /// The target is not a ready build of the team's, a tag is malformed, or the store failed.
    pub async fn assign_tags(
        &self,
        team: &Team,
        target: &str,
        tags: &[String],
    ) -> Result<(BuildId, Vec<String>), CatalogError> {
        let reference = TemplateRef::parse(target)?;
        let tags: Vec<String> = tags.iter().map(|tag| normalised_tag(tag)).collect::<Result<_, _>>()?;
        if tags.is_empty() {
            return Err(CatalogError::Invalid("at least one tag is needed".to_owned()));
        }
        let _change = self.begin_change().await?;
        let build = self.resolve_known(team, &reference)?.build;
        self.own_template(team, build.template.as_str())?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let assign = |tag: &String| TagAssignment {
            template: build.template.clone(),
            tag: tag.clone(),
            build: build.id,
            created_at: now,
        };
        let assignments: Vec<TagAssignment> = tags.iter().map(assign).collect();
        self.store.assign_tags(&assignments).await?;
        self.reload().await?;
        Ok((build.id, tags))
    }

    /// Returns a template's tags that refer to a ready build, each with its assignments, newest first.
    ///
    /// # Errors
    /// The team has no such template, or the store failed.
    pub async fn tags(
        &self,
        team: &Team,
        template: &str,
    ) -> Result<BTreeMap<String, Vec<TagInfo>>, CatalogError> {
        self.reload().await?;
        let template = self.own_template(team, template)?;
        let mut tags: BTreeMap<String, Vec<TagInfo>> = BTreeMap::new();
        let index = self.index.read();
        let Some(indexed) = index.templates.get(&template.id) else { return Ok(tags) };
        for assignment in indexed.tags.iter().rev() {
            let build = indexed.builds.iter().find(|build| build.id == assignment.build);
            if let Some(build) = build.filter(|build| build.status == BuildStatus::Ready) {
                let info = TagInfo { assignment: assignment.clone(), build: Arc::clone(build) };
                tags.entry(assignment.tag.clone()).or_default().push(info);
            }
        }
        Ok(tags)
    }

    /// Returns whether a tag refers to a ready build, and the normalised tag.
    ///
    /// # Errors
    /// The team has no such template, the tag is malformed, or the store failed.
    pub async fn tag_exists(
        &self,
        team: &Team,
        template: &str,
        tag: &str,
    ) -> Result<(bool, String), CatalogError> {
        let tag = normalised_tag(tag)?;
        Ok((self.tags(team, template).await?.contains_key(&tag), tag))
    }
}

impl Change<'_> {
    /// Removes tags from a team's template, which it returns.
    ///
    /// # Errors
    /// The team has no such template, the template has none of the tags, or the store failed.
    pub async fn remove_tags(
        &self,
        team: &Team,
        name: &str,
        tags: &[String],
    ) -> Result<Template, CatalogError> {
        let tags: Vec<String> = tags.iter().map(|tag| normalised_tag(tag)).collect::<Result<_, _>>()?;
        let template = self.catalog.own_template(team, name)?;
        if self.catalog.store.remove_tags(&template.id, &tags).await? == 0 {
            return Err(CatalogError::TagNotFound { tag: tags.join(", "), template: name.to_owned() });
        }
        self.catalog.reload().await?;
        Ok(template)
    }
}
