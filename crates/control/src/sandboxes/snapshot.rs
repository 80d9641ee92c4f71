//! Snapshots: captured states that outlive their sandbox and that any number of sandboxes can start from.
//! To the catalog a snapshot is a template whose build is a captured state; its name may move on to a newer one.
//! A state nobody can name any more is removed.

use std::sync::Arc;

use engine::Durability;
use ids::{BuildId, SandboxId, SnapshotId, TemplateId};
use serde_json::Map;
use store::{
    Build, BuildSnapshot, BuildStatus, EventKind, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tracing::Instrument;

use crate::paging::{Cursor, PageRequest};
use crate::reference::DEFAULT_TAG;
use crate::sandboxes::registry::Entry;
use crate::sandboxes::running::Live;
use crate::{Control, ControlError, LogLevel, TemplateRef};

/// A snapshot as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// What a sandbox can be created from: `<template id or team/name>:<tag>`.
    pub id: String,
    /// Its name, if it was given one.
    pub names: Vec<String>,
    created_at: OffsetDateTime,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct SnapshotQuery {
    /// Only those of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only those of this name, with this tag if it has one.
    pub name: Option<String>,
    /// Most to answer; none is a full page.
    pub limit: Option<i64>,
    /// Where the last page ended.
    pub next_token: Option<String>,
}

/// A page of snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotPage {
    /// Newest first.
    pub items: Vec<SnapshotEntry>,
    /// Where the next page begins; none at the end.
    pub next_token: Option<String>,
}

impl Control {
    /// Captures a team's running sandbox as a snapshot; the sandbox goes on.
    ///
    /// # Errors
    /// No such running sandbox, a name that is not the team's, or the capture failed.
    pub async fn snapshot(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        name: Option<&str>,
        memory: bool,
    ) -> Result<SnapshotEntry, ControlError> {
        let live = match self.entry(team.id, id)? {
            Entry::Running(live) => live,
            Entry::Paused(_) => {
                return Err(ControlError::Conflict(format!(
                    "Sandbox '{id}' cannot be snapshotted while in 'paused' state; resume it first"
                )));
            }
        };
        let reference = name.filter(|name| !name.trim().is_empty()).map(TemplateRef::parse).transpose()?;
        if let Some(namespace) = reference.as_ref().and_then(|reference| reference.namespace.as_ref())
            && *namespace != team.slug
        {
            return Err(ControlError::Invalid(format!(
                "namespace '{namespace}' must match your team '{}'",
                team.slug
            )));
        }
        if memory {
            self.check_memory_snapshots()?;
        }
        let (control, team) = (Arc::clone(self), Arc::clone(team));
        let task = self.tasks.spawn(
            async move {
                let _changing = Self::turn(&live.transition).await;
                if live.has_ended() {
                    return Err(ControlError::SandboxNotFound(live.id.clone()));
                }
                let state =
                    control.capture(&live, CaptureKind::Snapshot, memory, Durability::Durable).await?;
                let registered = control.register_snapshot(&team, &live, reference, state, memory).await;
                if registered.is_err() {
                    control.discard_state(state).await;
                }
                let entry = registered?;
                control.log(&live, LogLevel::Info, "sandbox snapshotted", &[("snapshot", entry.id.clone())]);
                let particulars = Map::from_iter([("snapshot_id".to_owned(), entry.id.clone().into())]);
                control.record_event(EventKind::Checkpointed, &*live, particulars).await;
                Ok(entry)
            }
            .in_current_span(),
        );
        task.await.unwrap_or(Err(ControlError::Engine("snapshotted")))
    }

    async fn register_snapshot(
        &self,
        team: &Team,
        live: &Live,
        reference: Option<TemplateRef>,
        state: SnapshotId,
        memory: bool,
    ) -> Result<SnapshotEntry, ControlError> {
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let details = live.details();
        let name = reference
            .as_ref()
            .map(|wanted| TemplateName { namespace: Some(team.slug.clone()), alias: wanted.name.clone() });
        let known = name.as_ref().and_then(|name| self.catalog.by_name(name));
        let template = match known {
            Some(template) => Template { updated_at: now, ..template },
            None => Template {
                id: TemplateId::generate(),
                team: Some(team.id),
                names: name.into_iter().collect(),
                public: false,
                created_at: now,
                updated_at: now,
                spawn_count: 0,
                last_spawned: None,
            },
        };
        let build = Build {
            id: BuildId::generate(),
            template: template.id.clone(),
            status: BuildStatus::Ready,
            cpu_count: details.cpu_count,
            memory_mib: details.memory_mib,
            disk_mib: details.disk_mib,
            envd_version: envd_api::VERSION.to_owned(),
            layers: details.layers,
            config: details.config,
            snapshot: Some(BuildSnapshot {
                id: state,
                memory,
                sandbox: live.id.clone(),
                base: live.template.clone(),
                warm_start: false,
            }),
            failure: None,
            created_at: now,
            finished_at: Some(now),
        };
        let tag = reference.as_ref().map_or(DEFAULT_TAG, TemplateRef::tag_or_default).to_owned();
        let assignment = TagAssignment {
            template: template.id.clone(),
            tag: tag.clone(),
            build: build.id,
            created_at: now,
        };
        self.store.put_template(&template, Some(&build), &[assignment]).await?;
        self.catalog.load(&*self.store).await?;
        self.drop_nameless(&template.id).await?;
        tracing::info!(sandbox_id = %live.id, template_id = %template.id, build_id = %build.id, "snapshot taken");
        Ok(entry_of(&template, &tag, now))
    }

    /// Removes a template's captured states that no tag means any more.
    async fn drop_nameless(&self, template: &TemplateId) -> Result<(), ControlError> {
        let nameless: Vec<Arc<Build>> = self.catalog.nameless_snapshots(template);
        if nameless.is_empty() {
            return Ok(());
        }
        let builds: Vec<BuildId> = nameless.iter().map(|build| build.id).collect();
        self.store.delete_builds(&builds).await?;
        self.catalog.load(&*self.store).await?;
        self.discard_states_of(&nameless).await;
        Ok(())
    }

    /// Removes the captured states of deleted builds, but for one that a sandbox is paused at.
    pub(crate) async fn discard_states_of(&self, builds: &[Arc<Build>]) {
        for state in builds.iter().filter_map(|build| build.snapshot.as_ref()) {
            let needed =
                self.table.all_paused().into_iter().any(|paused| {
                    paused.record.pause.as_ref().is_some_and(|pause| pause.snapshot == state.id)
                });
            if !needed {
                self.discard_state(state.id).await;
            }
        }
    }

    /// A page of a team's snapshots.
    ///
    /// # Errors
    /// The name, the limit or the token is malformed.
    pub fn snapshots(&self, team: &Team, query: &SnapshotQuery) -> Result<SnapshotPage, ControlError> {
        let request = PageRequest::parse(query.limit, query.next_token.as_deref(), false)?;
        let name = query.name.as_deref().filter(|name| !name.is_empty());
        let wanted = name.map(|name| Ok::<_, ControlError>((TemplateRef::parse(name)?, name.contains(':'))));
        let wanted = wanted.transpose()?;
        let items: Vec<SnapshotEntry> = self
            .catalog
            .snapshots_of(team.id)
            .into_iter()
            .filter(|(_, _, build)| {
                let source = build.snapshot.as_ref().map(|snapshot| &snapshot.sandbox);
                query.sandbox.as_ref().is_none_or(|sandbox| Some(sandbox) == source)
            })
            .filter(|(template, tag, _)| {
                wanted.as_ref().is_none_or(|(wanted, tagged)| {
                    let named = template.id.as_str() == wanted.name
                        || template.names.iter().any(|name| {
                            name.alias == wanted.name
                                && wanted
                                    .namespace
                                    .as_ref()
                                    .is_none_or(|n| name.namespace.as_ref() == Some(n))
                        });
                    named && (!tagged || tag == wanted.tag_or_default())
                })
            })
            .map(|(template, tag, build)| entry_of(&template, &tag, build.created_at))
            .collect();
        let (items, next_token) =
            request.apply(items, |item| Cursor { at: item.created_at, id: item.id.clone() });
        Ok(SnapshotPage { items, next_token })
    }
}

fn entry_of(template: &Template, tag: &str, created_at: OffsetDateTime) -> SnapshotEntry {
    let name = template.names.first().map(ToString::to_string);
    let id = format!("{}:{tag}", name.as_deref().unwrap_or(template.id.as_str()));
    let shown = name.map(|name| if tag == DEFAULT_TAG { name } else { format!("{name}:{tag}") });
    SnapshotEntry { id, names: shown.into_iter().collect(), created_at }
}
