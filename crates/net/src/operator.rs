//! What the operator permits of connections out of sandboxes, above the rules that sandboxes have of their own: a list of what is denied,
//! and a list outside of which everything is. One of each is for all sandboxes, and one for each team.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::policy::{Cidr, PolicyError, matches_domain};

/// A network, or host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// All addresses of a network.
    Network(Cidr),
    /// A host name, or `*.` and a suffix: any depth, not the suffix itself. In lower case.
    Domain(String),
}

impl FromStr for Destination {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let suffix = name.strip_prefix("*.").unwrap_or(&name);
        if !egress_rules::is_host_name(suffix) {
            return Err(PolicyError::Destination(text.to_owned()));
        }
        Ok(Self::Domain(name))
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(network) => f.write_str(&String::from(*network)),
            Self::Domain(name) => f.write_str(name),
        }
    }
}

/// Destinations by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Destinations {
    networks: Vec<Cidr>,
    domains: Vec<String>,
}

impl Destinations {
    fn new(list: impl IntoIterator<Item = Destination>) -> Self {
        let mut all = Self::default();
        for destination in list {
            match destination {
                Destination::Network(network) => all.networks.push(network),
                Destination::Domain(name) => all.domains.push(name),
            }
        }
        all
    }

    fn texts(&self) -> Vec<String> {
        let networks = self.networks.iter().map(|network| String::from(*network));
        networks.chain(self.domains.iter().cloned()).collect()
    }

    fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.covers(address))
    }

    fn has_name(&self, name: &str) -> bool {
        matches_domain(&self.domains, name)
    }
}

/// One pair of lists of the operator's. The default permits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorPolicy {
    deny: Destinations,
    allow_only: Option<Destinations>,
}

impl OperatorPolicy {
    /// Denies what `deny` has, and, if there is one, what is not in `allow_only`.
    #[must_use]
    pub fn new(deny: Vec<Destination>, allow_only: Option<Vec<Destination>>) -> Self {
        Self { deny: Destinations::new(deny), allow_only: allow_only.map(Destinations::new) }
    }

    /// Returns the networks and names that are denied.
    #[must_use]
    pub fn denied(&self) -> Vec<String> {
        self.deny.texts()
    }

    /// Returns the networks and names outside of which everything is denied, if there is such a list.
    #[must_use]
    pub fn allowed_only(&self) -> Option<Vec<String>> {
        self.allow_only.as_ref().map(Destinations::texts)
    }

    fn allows_address(&self, address: IpAddr) -> bool {
        self.allow_only.as_ref().is_none_or(|only| only.has_address(address))
    }

    fn allows_name(&self, name: &str) -> bool {
        self.allow_only.as_ref().is_some_and(|only| only.has_name(name))
    }
}

/// The operator's policies: for all sandboxes, and for those of each team. A change holds for connections that are made from then on.
#[derive(Debug, Default)]
pub struct OperatorPolicies {
    all: RwLock<Arc<OperatorPolicy>>,
    teams: RwLock<HashMap<u128, Arc<OperatorPolicy>>>,
}

impl OperatorPolicies {
    /// `all` is the policy for all sandboxes.
    #[must_use]
    pub fn new(all: OperatorPolicy) -> Self {
        Self { all: RwLock::new(Arc::new(all)), teams: RwLock::default() }
    }

    /// Returns the policy for all sandboxes.
    #[must_use]
    pub fn for_all(&self) -> Arc<OperatorPolicy> {
        Arc::clone(&self.all.read())
    }

    /// Replaces the policy for all sandboxes.
    pub fn set_for_all(&self, policy: OperatorPolicy) {
        *self.all.write() = Arc::new(policy);
    }

    /// Replaces the policy of a team.
    pub fn set_team(&self, team: u128, policy: OperatorPolicy) {
        let mut teams = self.teams.write();
        if policy == OperatorPolicy::default() {
            teams.remove(&team);
        } else {
            teams.insert(team, Arc::new(policy));
        }
    }

    /// Returns what applies to the sandboxes of a team.
    pub(crate) fn of(&self, team: u128) -> OperatorLayers {
        OperatorLayers { all: self.for_all(), team: self.teams.read().get(&team).cloned() }
    }
}

/// The policies of the operator's that apply to one sandbox: each of them must permit a connection.
#[derive(Debug, Clone)]
pub(crate) struct OperatorLayers {
    all: Arc<OperatorPolicy>,
    team: Option<Arc<OperatorPolicy>>,
}

impl OperatorLayers {
    fn each(&self) -> impl Iterator<Item = &OperatorPolicy> {
        std::iter::once(&*self.all).chain(self.team.as_deref())
    }

    /// Whether no connection to this address is permitted, whatever its name.
    pub(crate) fn denies_address(&self, address: IpAddr) -> bool {
        self.each().any(|policy| policy.deny.has_address(address))
    }

    /// Whether no connection to this name is permitted, whatever its address.
    pub(crate) fn denies_name(&self, name: &str) -> bool {
        self.each().any(|policy| policy.deny.has_name(name))
    }

    /// Whether any name is denied, so that names must be known.
    pub(crate) fn denies_names(&self) -> bool {
        self.each().any(|policy| !policy.deny.domains.is_empty())
    }

    /// Whether a connection to this address is permitted, of which the name is not known.
    pub(crate) fn permits_address(&self, address: IpAddr) -> bool {
        !self.denies_address(address) && self.each().all(|policy| policy.allows_address(address))
    }

    /// Whether a connection to this address is permitted that was resolved from this name.
    pub(crate) fn permits(&self, address: IpAddr, name: &str) -> bool {
        !self.denies_address(address)
            && !self.denies_name(name)
            && self.each().all(|policy| policy.allows_address(address) || policy.allows_name(name))
    }

    /// Whether only names that are listed may be resolved.
    pub(crate) fn restricts_names(&self) -> bool {
        self.each().any(|policy| policy.allow_only.is_some())
    }

    /// Whether this name may be resolved.
    pub(crate) fn permits_query(&self, name: &str) -> bool {
        !self.denies_name(name)
            && self.each().all(|policy| policy.allow_only.is_none() || policy.allows_name(name))
    }

    /// Whether somebody else may resolve the name: no address of it would be refused.
    pub(crate) fn leaves_to_others(&self, name: &str) -> bool {
        self.permits_query(name) && self.each().all(|policy| policy.deny.networks.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<Destination> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn layers(all: OperatorPolicy, team: OperatorPolicy) -> OperatorLayers {
        let policies = OperatorPolicies::new(all);
        policies.set_team(7, team);
        policies.of(7)
    }

    #[test]
    fn destinations_are_networks_or_names() {
        assert_eq!(list(&["10.0.0.0/8"]), [Destination::Network("10.0.0.0/8".parse().unwrap())]);
        assert_eq!(list(&["*.Example.com."]), [Destination::Domain("*.example.com".into())]);
        for bad in
            ["", "*", "10.0.0.0/33", "1.2.3", "a b", "http://x.org", "*.", "a..b", "x.org:443", "999.1.1.1"]
        {
            let error = bad.parse::<Destination>().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn each_layer_must_permit_a_connection() {
        let all = OperatorPolicy::new(list(&["9.9.9.0/24", "*.bad.org"]), None);
        let team =
            OperatorPolicy::new(vec![], Some(list(&["1.1.1.0/24", "9.9.9.9", "good.org", "x.bad.org"])));
        let layers = layers(all, team);
        assert!(layers.permits_address(ip("1.1.1.1")) && layers.permits_address(ip("::ffff:1.1.1.1")));
        assert!(!layers.permits_address(ip("9.9.9.9")) && !layers.permits_address(ip("2.2.2.2")));
        assert!(layers.permits(ip("2.2.2.2"), "Good.org.") && !layers.permits(ip("2.2.2.2"), "other.org"));
        assert!(!layers.permits(ip("9.9.9.9"), "good.org"), "a denied address by an allowed name");
        assert!(!layers.permits(ip("1.1.1.1"), "x.bad.org"), "a denied name at an allowed address");
        assert!(layers.permits_query("good.org") && !layers.permits_query("other.org"));
        assert!(!layers.permits_query("x.bad.org") && layers.restricts_names() && layers.denies_names());
        assert!(!layers.leaves_to_others("good.org"), "its address may be denied");
    }

    #[test]
    fn other_teams_have_the_policy_of_all_alone() {
        let policies = OperatorPolicies::new(OperatorPolicy::default());
        policies.set_team(7, OperatorPolicy::new(list(&["0.0.0.0/0"]), None));
        assert!(!policies.of(7).permits_address(ip("1.1.1.1")));
        assert!(!policies.of(7).permits_address(ip("2606:4700::1")), "all traffic includes IPv6");
        assert!(policies.of(8).permits_address(ip("1.1.1.1")) && !policies.of(8).restricts_names());
        policies.set_team(7, OperatorPolicy::default());
        assert!(policies.of(7).permits_address(ip("1.1.1.1")) && policies.of(7).leaves_to_others("a.org"));
    }
}
