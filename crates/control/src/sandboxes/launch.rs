//! [`LaunchSpec`]: everything needed to start one sandbox.

use std::collections::BTreeMap;

use engine::RestoreMode;
use ids::{SandboxId, SnapshotId, TeamId, TemplateId};
use net::EgressPolicy;
use store::{Build, BuildConfig, Pause, Sandbox, VolumeMount};

use super::egress::egress_policy;
use crate::ControlError;

/// What a sandbox starts from.
#[derive(Debug, Clone)]
pub(crate) enum LaunchSource {
    /// Its template's layers.
    Template,
    /// A snapshot.
    Snapshot {
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
        /// The sandbox whose token the restored envd still has.
        captured_from: SandboxId,
    },
}

impl LaunchSource {
    /// Returns the sandbox whose memory is restored, if memory is restored.
    pub(crate) fn restored_from(&self) -> Option<&SandboxId> {
        match self {
            Self::Snapshot { restore_mode: RestoreMode::Memory, captured_from, .. } => Some(captured_from),
            _ => None,
        }
    }
}

/// Everything needed to start one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct LaunchSpec {
    pub(crate) id: SandboxId,
    pub(crate) team: TeamId,
    /// The template that its processes see in their environment.
    pub(crate) template: TemplateId,
    /// Layer digests, uppermost first.
    pub(crate) layers: Vec<String>,
    pub(crate) config: BuildConfig,
    pub(crate) cpu_count: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: u32,
    /// Environment variables of the sandbox's processes. `None`: keep the variables that a restored envd has.
    pub(crate) env: Option<BTreeMap<String, String>>,
    pub(crate) egress: EgressPolicy,
    pub(crate) source: LaunchSource,
    /// Volumes that it mounts.
    pub(crate) volumes: Vec<VolumeMount>,
    /// Whether programs in the sandbox trust the operator's certificate authorities. Must be false for build steps whose files become
    /// a layer.
    pub(crate) trusts_operator_ca: bool,
    /// Whether other sandboxes start from the same layers; if so, the engine keeps what it prepared from the layers.
    pub(crate) shares_layers: bool,
}

impl LaunchSpec {
    /// The first start of a sandbox from a build. `env_vars` are the variables of its creator; a pre-started sandbox has none.
    pub(crate) fn from_build(
        id: &SandboxId,
        team: TeamId,
        build: &Build,
        env_vars: Option<&BTreeMap<String, String>>,
        egress: EgressPolicy,
    ) -> Self {
        let source =
            build.snapshot.as_ref().map_or(LaunchSource::Template, |snapshot| LaunchSource::Snapshot {
                snapshot: snapshot.id,
                restore_mode: if snapshot.memory { RestoreMode::Memory } else { RestoreMode::Disk },
                captured_from: snapshot.sandbox.clone(),
            });
        // Clients send an empty map when they set no variables.
        let own = env_vars.filter(|vars| !vars.is_empty());
        let env = || {
            let mut env = build.config.env.clone();
            env.extend(own.cloned().unwrap_or_default());
            env
        };
        let restores_memory = source.restored_from().is_some();
        Self {
            id: id.clone(),
            team,
            template: build.snapshot.as_ref().map_or(&build.template, |snapshot| &snapshot.base).clone(),
            layers: build.layers.clone(),
            config: build.config.clone(),
            cpu_count: build.cpu_count,
            memory_mib: build.memory_mib,
            disk_mib: build.disk_mib,
            env: (!restores_memory || own.is_some()).then(env),
            egress,
            source,
            volumes: Vec::new(),
            trusts_operator_ca: true,
            shares_layers: true,
        }
    }

    /// Another start of the sandbox with this record, from a snapshot, under the id `id`.
    pub(crate) fn from_snapshot(
        record: &Sandbox,
        id: &SandboxId,
        pause: &Pause,
        restore_mode: RestoreMode,
    ) -> Result<Self, ControlError> {
        let details = &record.details;
        Ok(Self {
            id: id.clone(),
            team: record.team,
            template: record.template.clone(),
            layers: details.layers.clone(),
            config: details.config.clone(),
            cpu_count: details.cpu_count,
            memory_mib: details.memory_mib,
            disk_mib: details.disk_mib,
            // The creator's variables are only in envd's memory.
            env: (restore_mode == RestoreMode::Disk).then(|| details.config.env.clone()),
            egress: egress_policy(record.team, details.network.as_ref(), details.allow_internet_access)?,
            source: LaunchSource::Snapshot {
                snapshot: pause.snapshot,
                restore_mode,
                captured_from: pause.captured_from.clone(),
            },
            volumes: details.volume_mounts.clone(),
            trusts_operator_ca: true,
            shares_layers: true,
        })
    }
}

/// Returns how a pause's snapshot is restored: with memory if it has any and memory is wanted.
pub(super) fn restore_mode_of(pause: &Pause, memory: bool) -> RestoreMode {
    if memory && pause.memory { RestoreMode::Memory } else { RestoreMode::Disk }
}
