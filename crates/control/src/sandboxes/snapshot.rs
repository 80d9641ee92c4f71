//! Takes snapshots that users start new sandboxes from. They outlive the sandbox that they were taken of. The catalog stores a
//! snapshot as a build of a template. A later snapshot may take over the name of an earlier one; a snapshot that has no name any more is
//! removed.

use std::sync::Arc;

use catalog::{Change, DEFAULT_TAG, TemplateRef};
use engine::Durability;
use ids::{BuildId, SandboxId, SnapshotId, TemplateId};
use logs::LogLevel;
use serde_json::Map;
use store::{
    Build, BuildSnapshot, BuildStatus, EventKind, TagAssignment, Team, Template, TemplateName,
    truncate_to_micros,
};
use telemetry::CaptureKind;
use time::OffsetDateTime;
use tracing::Instrument;

use super::snapshot_list::{SnapshotSummary, summary_of};
use super::{AnySandbox, RunningSandbox, begin_transition};
use crate::{Control, ControlError};

impl Control {
    /// Captures a team's running sandbox as a snapshot; the sandbox continues.
    ///
    /// # Errors
    /// There is no such running sandbox, the name is in another team's namespace, or the capture failed.
    pub async fn snapshot(
        self: &Arc<Self>,
        team: &Arc<Team>,
        id: &SandboxId,
        name: Option<&str>,
        memory: bool,
    ) -> Result<SnapshotSummary, ControlError> {
        let running = match self.any_sandbox(team.id, id)? {
            AnySandbox::Running(running) => running,
            AnySandbox::Paused(_) => {
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
        let capture = async move {
            let _transition = begin_transition(&running.transition).await;
            if running.has_ended() {
                return Err(ControlError::SandboxNotFound(running.id.clone()));
            }
            let snapshot =
                control.capture(&running, CaptureKind::Snapshot, memory, Durability::Durable).await?;
            let registered = control.register_snapshot(&team, &running, reference, snapshot, memory).await;
            if registered.is_err() {
                control.snapshots.discard(snapshot).await;
            }
            let summary = registered?;
            let fields = [("snapshot", summary.id.clone())];
            control.log(&running, LogLevel::Info, "sandbox snapshotted", &fields);
            let data = Map::from_iter([("snapshot_id".to_owned(), summary.id.clone().into())]);
            control.events.record(EventKind::Checkpointed, &*running, data).await;
            Ok(summary)
        };
        let task = self.tasks.spawn(capture.in_current_span());
        task.await.unwrap_or(Err(ControlError::Engine(
            "failed to take a snapshot of the sandbox; see the server's log",
        )))
    }

    /// Adds a captured snapshot to the catalog: a new build of the named template, or of a new one.
    async fn register_snapshot(
        &self,
        team: &Team,
        running: &RunningSandbox,
        reference: Option<TemplateRef>,
        snapshot: SnapshotId,
        memory: bool,
    ) -> Result<SnapshotSummary, ControlError> {
        let change = self.catalog.begin_change().await?;
        let now = truncate_to_micros(OffsetDateTime::now_utc());
        let name = reference
            .as_ref()
            .map(|wanted| TemplateName { namespace: Some(team.slug.clone()), alias: wanted.name.clone() });
        let known = name.as_ref().and_then(|name| self.catalog.template_named(name));
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
        let build = snapshot_build(&template, running, snapshot, memory, now);
        let tag = reference.as_ref().map_or(DEFAULT_TAG, TemplateRef::tag_or_default).to_owned();
        let assignment = TagAssignment {
            template: template.id.clone(),
            tag: tag.clone(),
            build: build.id,
            created_at: now,
        };
        change.put_template(&template, Some(&build), &[assignment]).await?;
        self.drop_untagged_snapshots(&change, &template.id).await?;
        tracing::info!(
            sandbox_id = %running.id, template_id = %template.id, build_id = %build.id, snapshot_id = %snapshot,
            "snapshot taken"
        );
        Ok(summary_of(&template, &tag, now))
    }

    /// Removes a template's snapshots that no tag refers to any more.
    async fn drop_untagged_snapshots(
        &self,
        change: &Change<'_>,
        template: &TemplateId,
    ) -> Result<(), ControlError> {
        let untagged = self.catalog.untagged_snapshots(template);
        if untagged.is_empty() {
            return Ok(());
        }
        let builds: Vec<BuildId> = untagged.iter().map(|build| build.id).collect();
        change.delete_builds(&builds).await?;
        self.snapshots.discard_of(&untagged).await;
        Ok(())
    }
}

/// Returns the build that stands for a snapshot of a sandbox.
fn snapshot_build(
    template: &Template,
    running: &RunningSandbox,
    snapshot: SnapshotId,
    memory: bool,
    now: OffsetDateTime,
) -> Build {
    let details = running.details();
    Build {
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
            id: snapshot,
            memory,
            sandbox: running.id.clone(),
            base: running.template.clone(),
            warm_start: false,
        }),
        failure: None,
        created_at: now,
        finished_at: Some(now),
    }
}
