//! Types of response bodies, with E2B's field names. A field without a value is left out, unless clients expect a null.
//! Times are RFC 3339 in UTC; sizes are MiB or bytes as the field's name says.

use std::collections::BTreeMap;

use catalog::TemplateSummary;
use control::{Access, ControlError, NewKey, SandboxInfo, SnapshotSummary};
use egress_rules::{EgressProxy, NetworkRules};
use ids::TeamId;
use serde::Serialize;
use store::{ApiKey, Lifecycle, Mask, NetworkConfig, SandboxState, VolumeMount};
use time::OffsetDateTime;

use crate::error::ErrorBody;
use crate::{ApiConfig, ApiError};

/// `clientID` of every sandbox. Old clients refuse an empty one.
const CLIENT_ID: &str = "6532622b";

/// A sandbox with its tokens: the response to a create, connect, resume, fork or rollback.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    envd_version: String,
    envd_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

impl Sandbox {
    pub(crate) fn new(access: Access, config: &ApiConfig) -> Self {
        let info = access.info;
        Self {
            template_id: info.template.into(),
            sandbox_id: info.id.into(),
            client_id: CLIENT_ID,
            alias: info.details.alias,
            envd_version: info.details.envd_version,
            envd_access_token: access.envd_token,
            traffic_access_token: access.traffic_token,
            domain: config.domain.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LifecycleView {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl From<Lifecycle> for LifecycleView {
    fn from(lifecycle: Lifecycle) -> Self {
        Self {
            auto_resume: lifecycle.auto_resume,
            on_timeout: if lifecycle.auto_pause { "pause" } else { "kill" },
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkView {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_public_traffic: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_request_host: Option<String>,
    /// As stored: placeholders for secrets are not replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<NetworkRules>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_proxy: Option<ProxyView>,
}

/// A proxy without its password and its authorities.
#[derive(Debug, Serialize)]
struct ProxyView {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<ProxyTlsView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyTlsView {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
}

impl From<EgressProxy> for ProxyView {
    fn from(proxy: EgressProxy) -> Self {
        Self {
            address: proxy.address(),
            username: proxy.username,
            tls: proxy.tls.map(|tls| ProxyTlsView { enabled: true, server_name: tls.server_name }),
        }
    }
}

impl From<NetworkConfig> for NetworkView {
    fn from(network: NetworkConfig) -> Self {
        Self {
            allow_public_traffic: network.allow_public_traffic,
            allow_out: network.allow_out,
            deny_out: network.deny_out,
            dns_servers: network.dns_servers,
            mask_request_host: network.mask_request_host,
            rules: network.rules,
            egress_proxy: network.egress_proxy.map(Into::into),
        }
    }
}

/// A snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    names: Vec<String>,
}

impl From<SnapshotSummary> for Snapshot {
    fn from(summary: SnapshotSummary) -> Self {
        Self { snapshot_id: summary.id, names: summary.names }
    }
}

/// The outcome of one of several forks: a sandbox or an error.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Forked {
    Sandbox(Sandbox),
    Error(ErrorBody),
}

impl Forked {
    pub(crate) fn new(result: Result<Access, ControlError>, config: &ApiConfig) -> Self {
        match result {
            Ok(access) => Self::Sandbox(Sandbox::new(access, config)),
            Err(error) => Self::Error(ApiError::from(error).into_body()),
        }
    }
}

/// A sandbox in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedSandbox {
    #[serde(flatten)]
    common: SandboxFields,
    volume_mounts: Vec<VolumeMountView>,
}

/// A volume that a sandbox has mounted. `readOnly` and `subPath` are extensions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMountView {
    name: String,
    path: String,
    #[serde(skip_serializing_if = "is_false")]
    read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_path: Option<String>,
}

impl From<VolumeMount> for VolumeMountView {
    fn from(mount: VolumeMount) -> Self {
        let VolumeMount { name, path, read_only, sub_path, .. } = mount;
        Self { name, path, read_only, sub_path }
    }
}

/// The response to a request for one sandbox.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxDetail {
    #[serde(flatten)]
    common: SandboxFields,
    envd_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_internet_access: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkView>,
    lifecycle: LifecycleView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volume_mounts: Vec<VolumeMountView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SandboxFields {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    end_at: OffsetDateTime,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    metadata: BTreeMap<String, String>,
    state: &'static str,
    envd_version: String,
    #[serde(skip_serializing_if = "is_false")]
    envd_unresponsive_at_pause: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl From<SandboxInfo> for SandboxFields {
    fn from(info: SandboxInfo) -> Self {
        let state = if info.state == SandboxState::Paused { "paused" } else { "running" };
        Self {
            template_id: info.template.into(),
            alias: info.details.alias,
            sandbox_id: info.id.into(),
            client_id: CLIENT_ID,
            started_at: info.started_at,
            end_at: info.end_at,
            cpu_count: info.details.cpu_count,
            memory_mb: info.details.memory_mib,
            disk_size_mb: info.details.disk_mib,
            metadata: info.details.metadata,
            state,
            envd_unresponsive_at_pause: info.pause.is_some_and(|pause| pause.unresponsive),
            envd_version: info.details.envd_version,
        }
    }
}

impl From<SandboxInfo> for ListedSandbox {
    fn from(mut info: SandboxInfo) -> Self {
        let volume_mounts = std::mem::take(&mut info.details.volume_mounts);
        Self { volume_mounts: volume_mounts.into_iter().map(Into::into).collect(), common: info.into() }
    }
}

impl SandboxDetail {
    pub(crate) fn new(mut access: Access, config: &ApiConfig) -> Self {
        let pause = access.info.pause.as_ref();
        let pause_mode = pause.map(|pause| if pause.memory { "full" } else { "filesystem" });
        let details = &mut access.info.details;
        Self {
            pause_mode,
            allow_internet_access: details.allow_internet_access,
            network: details.network.take().map(Into::into),
            volume_mounts: std::mem::take(&mut details.volume_mounts).into_iter().map(Into::into).collect(),
            lifecycle: details.lifecycle.into(),
            envd_access_token: access.envd_token,
            domain: config.domain.clone(),
            common: access.info.into(),
        }
    }
}

/// A template in a list. Clients expect nulls here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Template {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    public: bool,
    aliases: Vec<String>,
    names: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    created_by: Option<()>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_spawned_at: Option<OffsetDateTime>,
    spawn_count: u64,
    build_count: usize,
    envd_version: String,
    build_status: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    is_default: bool,
}

impl Template {
    /// Returns the template as the list of default templates shows it to all teams.
    pub(crate) fn into_default(self) -> Self {
        Self { is_default: true, ..self.without_use() }
    }

    /// Returns the template as `team` may see it: how often others start theirs is not its business.
    pub(crate) fn seen_by(team: TeamId, summary: TemplateSummary) -> Self {
        let is_own = summary.template.team == Some(team);
        let template = Self::from(summary);
        if is_own { template } else { template.without_use() }
    }

    fn without_use(self) -> Self {
        Self { spawn_count: 0, last_spawned_at: None, ..self }
    }
}

/// A build of a template.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TemplateBuild {
    #[serde(rename = "buildID")]
    build_id: String,
    status: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    finished_at: Option<OffsetDateTime>,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    envd_version: String,
}

impl From<&store::Build> for TemplateBuild {
    fn from(build: &store::Build) -> Self {
        Self {
            build_id: build.id.to_string(),
            status: build.status.as_str(),
            created_at: build.created_at,
            updated_at: build.finished_at.unwrap_or(build.created_at),
            finished_at: build.finished_at,
            cpu_count: build.cpu_count,
            memory_mb: build.memory_mib,
            disk_size_mb: build.disk_mib,
            envd_version: build.envd_version.clone(),
        }
    }
}

impl From<TemplateSummary> for Template {
    fn from(summary: TemplateSummary) -> Self {
        let TemplateSummary { template, build, build_count } = summary;
        let build = build.as_deref();
        Self {
            aliases: template.names.iter().map(|name| name.alias.clone()).collect(),
            names: template.names.iter().map(ToString::to_string).collect(),
            template_id: template.id.into(),
            build_id: build.map(|build| build.id.to_string()).unwrap_or_default(),
            cpu_count: build.map_or(0, |build| build.cpu_count),
            memory_mb: build.map_or(0, |build| build.memory_mib),
            disk_size_mb: build.map_or(0, |build| build.disk_mib),
            public: template.public,
            created_at: template.created_at,
            updated_at: template.updated_at,
            created_by: None,
            last_spawned_at: template.last_spawned,
            spawn_count: template.spawn_count,
            build_count,
            envd_version: build.map(|build| build.envd_version.clone()).unwrap_or_default(),
            build_status: build.map_or("waiting", |build| build.status.as_str()),
            is_default: false,
        }
    }
}

/// The parts of a secret that may be shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MaskView {
    prefix: String,
    value_length: usize,
    masked_value_prefix: String,
    masked_value_suffix: String,
}

impl From<Mask> for MaskView {
    fn from(mask: Mask) -> Self {
        Self {
            prefix: mask.prefix,
            value_length: mask.value_length,
            masked_value_prefix: mask.first,
            masked_value_suffix: mask.last,
        }
    }
}

/// An API key. `key` is present only in the response to its creation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    name: String,
    mask: MaskView,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    created_by: Option<()>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_used: Option<OffsetDateTime>,
}

impl From<ApiKey> for Key {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id.to_string(),
            key: None,
            name: key.name,
            mask: key.mask.into(),
            created_at: key.created_at,
            created_by: None,
            last_used: key.last_used,
        }
    }
}

impl From<NewKey> for Key {
    fn from(new: NewKey) -> Self {
        Self { key: Some(new.secret), ..new.record.into() }
    }
}
