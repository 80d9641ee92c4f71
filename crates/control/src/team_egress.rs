//! Where sandboxes of a team may connect to, by the operator's will ([`TeamEgress`]): changes, their checks, and what the gateway is told.

use net::{Destination, OperatorPolicy};
use store::{Team, TeamEgress};

use crate::ControlError;

/// Maximum number of entries of a list: each connection is compared with all.
const MAX_DESTINATIONS: usize = 1000;

/// New lists of a team; none keeps the old one.
#[derive(Debug, Clone, Default)]
pub struct EgressChange {
    /// What is denied. An empty list denies nothing.
    pub deny: Option<Vec<String>>,
    /// Outside of what everything is denied. An empty list removes the list, so that everything is permitted again that is not denied.
    pub allow_only: Option<Vec<String>>,
}

impl EgressChange {
    /// Returns the lists after the change.
    ///
    /// # Errors
    /// An entry is no network, address or host name, or there are too many.
    pub(crate) fn apply(self, old: TeamEgress) -> Result<TeamEgress, ControlError> {
        let deny = self.deny.as_deref().map(checked).transpose()?;
        let allow_only = self.allow_only.as_deref().map(checked).transpose()?;
        Ok(TeamEgress {
            deny: deny.unwrap_or(old.deny),
            allow_only: match allow_only {
                None => old.allow_only,
                Some(list) => Some(list).filter(|list| !list.is_empty()),
            },
        })
    }
}

/// Returns the entries in the form that is stored.
fn checked(list: &[String]) -> Result<Vec<String>, ControlError> {
    if list.len() > MAX_DESTINATIONS {
        return Err(ControlError::Invalid(format!("a list has at most {MAX_DESTINATIONS} destinations")));
    }
    let parsed = list.iter().map(|text| text.parse::<Destination>().map(|parsed| parsed.to_string()));
    parsed.collect::<Result<_, _>>().map_err(|error| ControlError::Invalid(error.to_string()))
}

/// Returns the policy of a team's lists.
pub(crate) fn policy_of(team: &Team) -> OperatorPolicy {
    // An entry that does not parse was not written by this server. Without it a list would permit more than it says.
    let parse = |list: &[String]| {
        list.iter().map(|text| text.parse()).collect::<Result<Vec<Destination>, _>>().inspect_err(|error| {
            tracing::error!(team_id = %team.id, %error, "the team's egress lists are damaged: its sandboxes connect to nothing");
        })
    };
    let deny = parse(&team.egress.deny);
    let allow_only = team.egress.allow_only.as_deref().map(parse).transpose();
    match (deny, allow_only) {
        (Ok(deny), Ok(allow_only)) => OperatorPolicy::new(deny, allow_only),
        _ => OperatorPolicy::new(Vec::new(), Some(Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn lists_are_checked_replaced_and_removed() {
        let change =
            EgressChange { deny: texts(&["10.1.0.0/16", "Bad.org"]), allow_only: texts(&["*.good.org"]) };
        let first = change.apply(TeamEgress::default()).unwrap();
        assert_eq!(first.deny, ["10.1.0.0/16", "bad.org"]);
        let kept = EgressChange::default().apply(first.clone()).unwrap();
        assert_eq!(kept, first);
        let removed = EgressChange { deny: texts(&[]), allow_only: texts(&[]) }.apply(first).unwrap();
        assert_eq!(removed, TeamEgress::default());
        let bad = EgressChange { deny: texts(&["http://bad.org"]), ..EgressChange::default() };
        let error = bad.apply(TeamEgress::default()).unwrap_err();
        assert!(error.to_string().contains("http://bad.org"), "{error}");
        let many = EgressChange { deny: Some(vec!["a.org".to_owned(); 1001]), ..EgressChange::default() };
        assert!(many.apply(TeamEgress::default()).is_err());
    }
}
