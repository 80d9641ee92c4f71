//! The body of `POST /init`, by which the control plane configures a sandbox's envd.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The body of `POST /init`. An absent field leaves its setting as it is, except for the token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// The token that envd demands from now on. Absent or empty removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// Environment variables of every process; replace the earlier ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// RFC 3339. envd sets the clock by it and ignores requests that are not newer than the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// User that requests act as when they name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of processes that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Id of the sandbox, for its processes' environment. E2B's envd reads the three ids from a metadata service.
    #[serde(rename = "sandboxID", skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Id of its template.
    #[serde(rename = "templateID", skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Id of the team that owns it.
    #[serde(rename = "teamID", skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// Processors of the sandbox. On a shared kernel envd would see the host's. Not in E2B's protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u64>,
    /// Memory of the sandbox in MiB. Not in E2B's protocol.
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Limit of what the sandbox writes in MiB, where its file system shows a larger disk that it shares. Not in E2B's protocol.
    #[serde(rename = "diskMB", skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Certificate authorities that the sandbox trusts, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Fresh randomness for a sandbox that was restored from a snapshot, hexadecimal. Not in E2B's protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Address of E2B's event service.
    #[serde(rename = "hyperloopIP", skip_serializing_if = "Option::is_none")]
    pub hyperloop_ip: Option<String>,
    /// E2B's volumes; our envd refuses them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<serde_json::Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_protocol() {
        let request = InitRequest {
            access_token: Some("t".into()),
            env_vars: Some(BTreeMap::from([("A".into(), "1".into())])),
            timestamp: Some("2026-01-01T00:00:00Z".into()),
            default_user: Some("user".into()),
            default_workdir: Some("/w".into()),
            sandbox_id: Some("i1".into()),
            template_id: Some("base".into()),
            team_id: Some("team".into()),
            cpu_count: Some(2),
            memory_mib: Some(512),
            disk_mib: Some(1024),
            ca_bundle: Some("pem".into()),
            seed: Some("00".into()),
            ..InitRequest::default()
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"accessToken":"t","envVars":{"A":"1"},"timestamp":"2026-01-01T00:00:00Z","defaultUser":"user","#,
                r#""defaultWorkdir":"/w","sandboxID":"i1","templateID":"base","teamID":"team","cpuCount":2,"#,
                r#""memoryMB":512,"diskMB":1024,"caBundle":"pem","seed":"00"}"#
            )
        );
        let read: InitRequest = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn absent_fields_stay_absent() {
        assert_eq!(serde_json::to_string(&InitRequest::default()).unwrap(), "{}");
        let read: InitRequest = serde_json::from_str(r#"{"hyperloopIP":"10.0.0.1","unknown":1}"#).unwrap();
        assert_eq!(read.hyperloop_ip.as_deref(), Some("10.0.0.1"));
        assert!(read.access_token.is_none());
    }
}
