//! Translates a request's network settings into the engine's egress policy. Error texts are part of the wire contract.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ids::TeamId;
use net::{Cidr, EgressPolicy, SandboxProxy, SandboxRules};
use store::NetworkConfig;

use crate::ControlError;

/// Name server that is allowed when names are allowed and the request sets none.
const DEFAULT_DNS: &str = "8.8.8.8";
/// Maximum number of name servers.
const MAX_DNS_SERVERS: usize = 10;

/// Returns the egress policy that a request of this team asks for.
///
/// # Errors
/// An entry or header rule is malformed, or names are allowed while other traffic is not denied.
pub fn egress_policy(
    team: TeamId,
    network: Option<&NetworkConfig>,
    allow_internet_access: Option<bool>,
) -> Result<EgressPolicy, ControlError> {
    let none = NetworkConfig::default();
    let network = network.unwrap_or(&none);
    let mut policy = EgressPolicy::default();

    for entry in network.deny_out.iter().flatten() {
        policy.deny.push(specified_cidr(entry).ok_or_else(|| invalid("denied CIDR", entry))?);
    }
    if allow_internet_access == Some(false) {
        policy.deny = EgressPolicy::deny_all().deny;
    }

    for entry in network.allow_out.iter().flatten() {
        if entry.parse::<Cidr>().is_ok() || entry.contains('/') {
            policy.allow.push(specified_cidr(entry).ok_or_else(|| invalid("allowed CIDR", entry))?);
        } else {
            policy.allow_domains.push(entry.trim_end_matches('.').to_ascii_lowercase());
        }
    }

    let dns = dns_servers(network)?;
    if !policy.allow_domains.is_empty() {
        let all_denied = policy.deny.iter().any(|cidr| cidr.is_everything() && cidr.base().is_ipv4());
        if !all_denied {
            return Err(ControlError::Invalid(
                "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block \
                 all other traffic."
                    .to_owned(),
            ));
        }
        policy.allow.extend(dns);
    }
    if let Some(mask) = &network.mask_request_host {
        check_mask(mask)?;
    }
    if let Some(rules) = &network.rules {
        let rules = rules.check().map_err(|error| ControlError::Invalid(error.to_string()))?;
        policy.rules = Some(Arc::new(SandboxRules { team: team.as_u128(), rules }));
    }
    if let Some(proxy) = &network.egress_proxy {
        let proxy = SandboxProxy::new(team.as_u128(), proxy.clone()).map_err(|error| {
            ControlError::Invalid(format!("Invalid egress proxy config: egress proxy tls.caCert: {error}"))
        })?;
        policy.proxy = Some(Arc::new(proxy));
    }
    Ok(policy)
}

fn invalid(what: &str, entry: &str) -> ControlError {
    ControlError::Invalid(format!("invalid {what} {entry}"))
}

/// Parses a network. The bare unspecified address is refused: `0.0.0.0` as a rule is always a mistake for `0.0.0.0/0`.
fn specified_cidr(entry: &str) -> Option<Cidr> {
    let bare: Option<IpAddr> = entry.parse().ok();
    if bare.is_some_and(|address| address.is_unspecified()) {
        return None;
    }
    entry.parse().ok()
}

fn dns_servers(network: &NetworkConfig) -> Result<Vec<Cidr>, ControlError> {
    let named = network.dns_servers.as_deref();
    if named.is_some_and(|named| named.len() > MAX_DNS_SERVERS) {
        return Err(ControlError::Invalid(format!("at most {MAX_DNS_SERVERS} DNS servers can be given")));
    }
    let default = [DEFAULT_DNS.to_owned()];
    named
        .unwrap_or(&default)
        .iter()
        .map(|entry| {
            let address: Ipv4Addr = entry.parse().map_err(|_| invalid("DNS server", entry))?;
            address.to_string().parse().map_err(|_| invalid("DNS server", entry))
        })
        .collect()
}

/// Checks a Host header: a host with an optional port, in which `${PORT}` may stand.
fn check_mask(mask: &str) -> Result<(), ControlError> {
    let filled = mask.replace("${PORT}", "80");
    let (host, port) = match filled.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (filled.as_str(), None),
    };
    let host_is_fine = !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    let port_is_fine = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if host_is_fine && port_is_fine { Ok(()) } else { Err(invalid("maskRequestHost", mask)) }
}

/// Removes everything about outgoing traffic.
pub(super) fn clear_egress(network: &mut NetworkConfig) {
    network.allow_out = None;
    network.deny_out = None;
    network.dns_servers = None;
    network.rules = None;
    network.egress_proxy = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_of(
        network: Option<&NetworkConfig>,
        allow_internet_access: Option<bool>,
    ) -> Result<EgressPolicy, ControlError> {
        egress_policy(TeamId::generate(), network, allow_internet_access)
    }

    /// The value of the SDKs' constant of this name.
    const ALL_TRAFFIC: &str = "0.0.0.0/0";

    fn config(allow: &[&str], deny: &[&str]) -> NetworkConfig {
        let owned = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect());
        NetworkConfig { allow_out: owned(allow), deny_out: owned(deny), ..NetworkConfig::default() }
    }

    #[test]
    fn without_settings_everything_public_is_allowed() {
        assert_eq!(policy_of(None, None).unwrap(), EgressPolicy::default());
        assert_eq!(policy_of(None, Some(true)).unwrap(), EgressPolicy::default());
        assert_eq!(policy_of(None, Some(false)).unwrap(), EgressPolicy::deny_all());
    }

    #[test]
    fn networks_and_names_are_distinguished() {
        let policy = policy_of(
            Some(&config(&["1.1.1.1", "10.0.0.0/8", "*.Example.com", "pypi.org."], &[ALL_TRAFFIC])),
            None,
        )
        .unwrap();
        assert_eq!(policy.allow_domains, ["*.example.com", "pypi.org"]);
        assert!(policy.permits_address("1.1.1.1".parse().unwrap()));
        assert!(policy.permits_address("8.8.8.8".parse().unwrap()), "names need a name server");
        assert!(!policy.permits_address("9.9.9.9".parse().unwrap()));
    }

    #[test]
    fn denied_internet_keeps_allowed_networks() {
        let policy = policy_of(Some(&config(&["1.1.1.1"], &["9.9.9.9"])), Some(false)).unwrap();
        assert!(policy.permits_address("1.1.1.1".parse().unwrap()));
        assert!(!policy.permits_address("8.8.4.4".parse().unwrap()));
    }

    #[test]
    fn named_dns_servers_replace_the_default() {
        let mut network = config(&["a.com"], &[ALL_TRAFFIC]);
        network.dns_servers = Some(vec![]);
        assert!(policy_of(Some(&network), None).unwrap().allow.is_empty());
        network.dns_servers = Some(vec!["9.9.9.9".into()]);
        assert!(policy_of(Some(&network), None).unwrap().permits_address("9.9.9.9".parse().unwrap()));
        network.dns_servers = Some(vec!["::1".into()]);
        assert!(policy_of(Some(&network), None).is_err());
        network.dns_servers = Some(vec!["9.9.9.9".into(); 11]);
        assert!(policy_of(Some(&network), None).is_err());
    }

    #[test]
    fn malformed_entries_are_named() {
        for (allow, deny, message) in [
            (&[][..], &["example.com"][..], "invalid denied CIDR example.com"),
            (&[], &["0.0.0.0"], "invalid denied CIDR 0.0.0.0"),
            (&[], &["::"], "invalid denied CIDR ::"),
            (&["0.0.0.0"], &[], "invalid allowed CIDR 0.0.0.0"),
            (&["1.2.3.4/40"], &[], "invalid allowed CIDR 1.2.3.4/40"),
        ] {
            let error = policy_of(Some(&config(allow, deny)), None).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = policy_of(Some(&config(&["a.com"], &["1.1.1.1"])), None).unwrap_err().to_string();
        assert!(error.contains("'ALL_TRAFFIC'"), "{error}");
    }

    #[test]
    fn masks_are_hosts() {
        for (mask, fine) in [
            ("localhost:${PORT}", true),
            ("${PORT}-x.example.com", true),
            ("example.com:8080", true),
            ("", false),
            ("a b", false),
            ("ex\u{e4}mple.com", false),
            ("host:99999", false),
            ("a..b", false),
            ("x\r\ny", false),
        ] {
            let network =
                NetworkConfig { mask_request_host: Some(mask.to_owned()), ..NetworkConfig::default() };
            assert_eq!(policy_of(Some(&network), None).is_ok(), fine, "{mask:?}");
        }
    }
}
