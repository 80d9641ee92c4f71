//! Header rules: which headers the gateway sets on a sandbox's requests to which hosts (`network.rules`). Beside them the proxy that its
//! connections go through (`network.egressProxy`).
//!
//! [`NetworkRules`] is the wire and stored form. [`NetworkRules::check`] validates it, with the texts and in the order of the wire
//! contract, and [`Rules`] is the checked form that requests are looked up in. Decisions only: no sockets, no secrets.
#![forbid(unsafe_code)]

mod check;
mod host;
mod proxy;
mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use check::RuleError;
use host::HostKey;
pub use host::{covers, is_host_name};
pub use proxy::{EgressProxy, ProxyError, ProxyRequest, ProxyTls, ProxyTlsRequest};
pub use template::{MalformedPlaceholder, Part, Template, secret_name};

/// The destination port of rules whose key names none.
pub const HTTPS: u16 = 443;

/// `network.rules` as a client sends it: rules by host name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkRules(#[serde(deserialize_with = "lists")] pub BTreeMap<String, Vec<Rule>>);

/// One rule of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is changed in requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
}

/// What a rule changes in requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// Headers to set. Values may contain placeholders for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
}

/// Reads the lists of rules; a null is an empty list.
fn lists<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<Rule>>, D::Error> {
    let lists = BTreeMap::<String, Option<Vec<Rule>>>::deserialize(deserializer)?;
    Ok(lists.into_iter().map(|(key, list)| (key, list.unwrap_or_default())).collect())
}

/// Checked rules, to look requests up in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<(HostKey, HeaderRule)>);

/// The headers that are set on requests to one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderRule {
    /// Names as the rule spells them, and values.
    pub headers: Vec<(String, Template)>,
}

impl Rules {
    /// Whether any rule is about connections to this port, so that their server name must be read.
    #[must_use]
    pub fn concern_port(&self, port: u16) -> bool {
        self.0.iter().any(|(key, rule)| key.port.unwrap_or(HTTPS) == port && !rule.headers.is_empty())
    }

    /// Whether there may be a rule for a host of this name, on any port.
    #[must_use]
    pub fn concern_host(&self, host: &str) -> bool {
        self.0.iter().any(|(key, rule)| !rule.headers.is_empty() && key.matches_host(host))
    }

    /// Returns the rule for requests to a host: that of the exact name, or else of the longest wildcard. Rules of several keys are not
    /// merged. `None` also if the rule sets no header.
    #[must_use]
    pub fn find(&self, host: &str, port: u16) -> Option<&HeaderRule> {
        if !is_host_name(host) {
            return None;
        }
        let matching = self.0.iter().filter(|(key, _)| key.matches(host, port));
        let (_, rule) = matching.max_by_key(|(key, _)| key.specificity())?;
        (!rule.headers.is_empty()).then_some(rule)
    }
}
