//! Lists a team's snapshots: filters, and pages ordered by creation time.

use catalog::{DEFAULT_TAG, TemplateRef};
use ids::SandboxId;
use store::{Team, Template};
use time::OffsetDateTime;

use crate::paging::{Cursor, PageRequest};
use crate::{Control, ControlError};

/// A snapshot as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// What a sandbox can be created from: `<template id or team/name>:<tag>`.
    pub id: String,
    /// Its name, if it was given one.
    pub names: Vec<String>,
    created_at: OffsetDateTime,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct SnapshotQuery {
    /// Only snapshots of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only snapshots with this name, and with its tag if it has one.
    pub name: Option<String>,
    /// Maximum number of snapshots; none is a full page.
    pub limit: Option<i64>,
    /// Token of the next page, from the previous page.
    pub next_token: Option<String>,
}

/// A page of snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotPage {
    /// The snapshots, newest first.
    pub items: Vec<SnapshotSummary>,
    /// Token of the next page; none on the last page.
    pub next_token: Option<String>,
}

impl Control {
    /// Returns a page of a team's snapshots.
    ///
    /// # Errors
    /// The name, the limit or the token is malformed.
    pub fn snapshots(&self, team: &Team, query: &SnapshotQuery) -> Result<SnapshotPage, ControlError> {
        let request = PageRequest::parse(query.limit, query.next_token.as_deref(), false)?;
        let name = query.name.as_deref().filter(|name| !name.is_empty());
        let wanted = name.map(|name| Ok::<_, ControlError>((TemplateRef::parse(name)?, name.contains(':'))));
        let wanted = wanted.transpose()?;
        let is_wanted = |template: &Template, tag: &str| {
            wanted.as_ref().is_none_or(|(reference, has_tag)| {
                matches_name(template, reference) && (!has_tag || tag == reference.tag_or_default())
            })
        };
        let items: Vec<SnapshotSummary> = self
            .catalog
            .snapshots_of(team.id)
            .into_iter()
            .filter(|(_, _, build)| {
                let source = build.snapshot.as_ref().map(|snapshot| &snapshot.sandbox);
                query.sandbox.as_ref().is_none_or(|sandbox| Some(sandbox) == source)
            })
            .filter(|(template, tag, _)| is_wanted(template, tag))
            .map(|(template, tag, build)| summary_of(&template, &tag, build.created_at))
            .collect();
        let position = |item: &SnapshotSummary| Cursor { at: item.created_at, id: item.id.clone() };
        let (items, next_token) = request.apply(items, position);
        Ok(SnapshotPage { items, next_token })
    }
}

fn matches_name(template: &Template, reference: &TemplateRef) -> bool {
    let is_named = |name: &store::TemplateName| {
        let has_namespace =
            reference.namespace.as_ref().is_none_or(|wanted| name.namespace.as_ref() == Some(wanted));
        name.alias == reference.name && has_namespace
    };
    template.id.as_str() == reference.name || template.names.iter().any(is_named)
}

pub(super) fn summary_of(template: &Template, tag: &str, created_at: OffsetDateTime) -> SnapshotSummary {
    let name = template.names.first().map(ToString::to_string);
    let id = format!("{}:{tag}", name.as_deref().unwrap_or(template.id.as_str()));
    let shown = name.map(|name| if tag == DEFAULT_TAG { name } else { format!("{name}:{tag}") });
    SnapshotSummary { id, names: shown.into_iter().collect(), created_at }
}
