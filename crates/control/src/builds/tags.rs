//! Tags: names for builds of a template that can be moved. The last assignment whose build is ready is what a tag means.
//! Assignments are history: moving a tag adds one.
//! Protocol: `/templates/tags` and `/templates/{id}/tags…`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ids::BuildId;
use store::{Build, TagAssignment, Team, Template, truncate_to_micros};
use time::OffsetDateTime;

use crate::{Control, ControlError, TemplateRef};

/// An assignment of a tag to a ready build.
#[derive(Debug, Clone)]
pub struct TagInfo {
    /// The assignment.
    pub assignment: TagAssignment,
    /// The build it means.
    pub build: Arc<Build>,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct TagPage<T> {
    /// The part.
    pub items: Vec<T>,
    /// Where the next one begins; none at the end.
    pub next: Option<usize>,
}

impl<T> TagPage<T> {
    /// The part of `all` from `from` on.
    #[must_use]
    pub fn of(all: Vec<T>, from: usize, limit: usize) -> Self {
        let next = from.saturating_add(limit);
        let next = (next < all.len()).then_some(next);
        Self { items: all.into_iter().skip(from).take(limit).collect(), next }
    }
}

/// A tag in its one form.
///
/// # Errors
/// It is none.
pub(super) fn normalised(tag: &str) -> Result<String, ControlError> {
    let tag = tag.trim().to_lowercase();
    TemplateRef::parse(&format!("x:{tag}"))?;
    Ok(tag)
}

impl Control {
    /// Gives what `target` (`name[:tag]`) means more tags; returns the build and the tags.
    ///
    /// # Errors
    /// The target is not a ready build of the team's, or a tag is malformed.
    pub async fn assign_tags(
        &self,
        team: &Team,
        target: &str,
        tags: &[String],
    ) -> Result<(BuildId, Vec<String>), ControlError> {
        let reference = TemplateRef::parse(target)?;
        let tags: Vec<String> = tags.iter().map(|tag| normalised(tag)).collect::<Result<_, _>>()?;
        if tags.is_empty() {
            return Err(ControlError::Invalid("at least one tag is needed".to_owned()));
        }
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let build = self.catalog.resolve(team, &reference)?.build;
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
        self.catalog.load(&*self.store).await?;
        Ok((build.id, tags))
    }

    /// Takes tags away from a team's template.
    ///
    /// # Errors
    /// There is no such template of the team's, or it has none of the tags.
    pub async fn remove_tags(&self, team: &Team, name: &str, tags: &[String]) -> Result<(), ControlError> {
        let tags: Vec<String> = tags.iter().map(|tag| normalised(tag)).collect::<Result<_, _>>()?;
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let template = self.own_template(team, name)?;
        if self.store.remove_tags(&template.id, &tags).await? == 0 {
            return Err(ControlError::TagNotFound { tag: tags.join(", "), template: name.to_owned() });
        }
        self.catalog.load(&*self.store).await?;
        self.drop_stale_warm_starts(&template.id).await;
        Ok(())
    }

    /// A team's template by name or id.
    ///
    /// # Errors
    /// There is none, or it is another team's.
    pub fn own_template(&self, team: &Team, text: &str) -> Result<Template, ControlError> {
        let reference = TemplateRef::parse(text)?;
        let found = self.catalog.lookup(team, &reference).map(|entry| entry.template);
        found
            .filter(|template| template.team == Some(team.id))
            .ok_or_else(|| ControlError::TemplateNotFound(reference.full_name()))
    }

    /// A template's tags that mean something, each with its assignments, newest first.
    ///
    /// # Errors
    /// There is no such template of the team's.
    pub async fn tags(
        &self,
        team: &Team,
        template: &str,
    ) -> Result<BTreeMap<String, Vec<TagInfo>>, ControlError> {
        self.catalog.load(&*self.store).await?;
        let template = self.own_template(team, template)?;
        let mut tags: BTreeMap<String, Vec<TagInfo>> = BTreeMap::new();
        for info in self.catalog.ready_assignments(&template.id).into_iter().rev() {
            tags.entry(info.assignment.tag.clone()).or_default().push(info);
        }
        Ok(tags)
    }

    /// Whether a tag means something, and its one form.
    ///
    /// # Errors
    /// There is no such template of the team's, or the tag is malformed.
    pub async fn tag_exists(
        &self,
        team: &Team,
        template: &str,
        tag: &str,
    ) -> Result<(bool, String), ControlError> {
        let tag = normalised(tag)?;
        Ok((self.tags(team, template).await?.contains_key(&tag), tag))
    }
}
