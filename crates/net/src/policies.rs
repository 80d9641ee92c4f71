//! What applies to the connections of one sandbox at one moment: its own policy, and the operator's above it. A connection must be
//! permitted by each.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use crate::operator::OperatorLayers;
use crate::policy::EgressPolicy;

/// The policies of one sandbox. Derefs to the sandbox's own, for its header rules and its proxy.
#[derive(Debug, Clone)]
pub(crate) struct Policies {
    own: Arc<EgressPolicy>,
    operator: OperatorLayers,
}

impl Deref for Policies {
    type Target = EgressPolicy;

    fn deref(&self) -> &EgressPolicy {
        &self.own
    }
}

impl Policies {
    pub(crate) fn new(own: Arc<EgressPolicy>, operator: OperatorLayers) -> Self {
        Self { own, operator }
    }

    /// The operator's part, which also holds for what the sandbox's own rules are not asked about: its proxy.
    pub(crate) fn operator(&self) -> &OperatorLayers {
        &self.operator
    }

    /// Whether a connection to this address is permitted, whatever name its client sends, unless the name is denied.
    pub(crate) fn permit_address(&self, address: IpAddr) -> bool {
        self.own.permits_address(address) && self.operator.permits_address(address)
    }

    /// Whether a connection to this address is permitted that was resolved from this name, or whose client sends it.
    pub(crate) fn permit(&self, address: IpAddr, name: &str) -> bool {
        (self.own.permits_address(address) || self.own.permits_domain(name))
            && self.operator.permits(address, name)
    }

    /// Returns why a connection to this address, by this name if it is known, is not permitted.
    pub(crate) fn refusal(&self, address: IpAddr, name: Option<&str>) -> &'static str {
        let own = self.own.permits_address(address) || name.is_some_and(|name| self.own.permits_domain(name));
        if own { "denied by the operator" } else { "denied by a rule of the sandbox" }
    }

    /// Whether names must be known although the address is permitted.
    pub(crate) fn need_names(&self) -> bool {
        self.own.leaves_names_to_proxy() || self.operator.denies_names()
    }

    /// Whether the proxy may be given the name, which it resolves itself: a name that leads to a denied address would get past the rules.
    pub(crate) fn leave_to_proxy(&self, name: &str) -> bool {
        (self.own.permits_domain(name) || self.own.leaves_names_to_proxy())
            && self.operator.leaves_to_others(name)
    }

    /// Whether this name may be resolved; none is a name that is no host name.
    pub(crate) fn permit_query(&self, name: Option<&str>) -> bool {
        let Some(name) = name else {
            return !self.own.restricts_names() && !self.operator.restricts_names();
        };
        (!self.own.restricts_names() || self.own.permits_domain(name)) && self.operator.permits_query(name)
    }
}

#[cfg(test)]
impl From<EgressPolicy> for Policies {
    /// Without a policy of the operator's.
    fn from(own: EgressPolicy) -> Self {
        Self::new(Arc::new(own), crate::operator::OperatorPolicies::default().of(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::{OperatorPolicies, OperatorPolicy};

    #[test]
    fn a_name_of_one_policy_and_an_address_of_the_other_make_a_permission() {
        let own = EgressPolicy { allow_domains: vec!["good.org".into()], ..EgressPolicy::deny_all() };
        let only = OperatorPolicy::new(vec![], Some(vec!["1.1.1.0/24".parse().unwrap()]));
        let policies = Policies::new(Arc::new(own), OperatorPolicies::new(only).of(0));
        let (inside, outside) = ("1.1.1.1".parse().unwrap(), "2.2.2.2".parse().unwrap());
        assert!(!policies.permit_address(inside), "the sandbox's own policy denies addresses");
        assert!(policies.permit(inside, "good.org") && !policies.permit(outside, "good.org"));
        assert!(!policies.permit(inside, "other.org"));
        assert!(!policies.permit_query(Some("good.org")), "the operator lists no names");
        assert!(!policies.permit_query(None) && Policies::from(EgressPolicy::default()).permit_query(None));
    }
}
