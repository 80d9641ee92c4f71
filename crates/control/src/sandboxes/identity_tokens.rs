//! Identity tokens (`iam.tokens`): who a token is about. They are made when a header rule sends one.

use std::collections::BTreeMap;
use std::sync::Arc;

use identity::{Issuer, Subject};
use ids::{SandboxId, TeamId};

use crate::{Control, ControlError};

/// Maximum number of tokens of a sandbox.
const MAX_TOKENS: usize = 5;
/// Maximum length of a token's name, and of its audience, bytes.
const MAX_LENGTH: usize = 2048;

impl Control {
    /// Returns what signs identity tokens, if this server has any.
    #[must_use]
    pub fn issuer(&self) -> Option<&Arc<Issuer>> {
        self.config.identity.as_ref()
    }

    /// Checks the audiences of identity tokens by name, and sees to it that there is a key.
    ///
    /// # Errors
    /// They are not valid, or this server has no identity tokens.
    pub(super) async fn accept_tokens(&self, tokens: &BTreeMap<String, String>) -> Result<(), ControlError> {
        if tokens.is_empty() {
            return Ok(());
        }
        check_tokens(tokens).map_err(ControlError::Invalid)?;
        let Some(issuer) = self.issuer().cloned() else {
            return Err(ControlError::Invalid(
                "iam.tokens is not supported by this server: it has neither --domain nor --public-url, which tokens name \
                 as their issuer"
                    .to_owned(),
            ));
        };
        let prepared = tokio::task::spawn_blocking(move || issuer.prepare()).await;
        if let Ok(Err(error)) = &prepared {
            tracing::error!(%error, "identity tokens cannot be signed");
        }
        match prepared {
            Ok(Ok(())) => Ok(()),
            _ => Err(ControlError::Invalid("iam.tokens cannot be used at the moment".to_owned())),
        }
    }

    /// Returns who a token of this name is about and for which audience it is, if the running sandbox is the team's and has such a token.
    #[must_use]
    pub fn identity_token(&self, team: TeamId, sandbox: &str, name: &str) -> Option<(Subject, String)> {
        let running = self.registry.running(&sandbox.parse::<SandboxId>().ok()?)?;
        let record = running.record();
        if record.team != team {
            return None;
        }
        let audience = record.details.identity_tokens.get(name)?.clone();
        let subject = Subject {
            team: record.team.to_string(),
            template: record.template.to_string(),
            sandbox: record.id.to_string(),
            execution: record.execution.to_string(),
        };
        Some((subject, audience))
    }
}

/// Checks tokens; the error texts are part of the wire contract.
fn check_tokens(tokens: &BTreeMap<String, String>) -> Result<(), String> {
    if tokens.len() > MAX_TOKENS {
        return Err(format!("iam.tokens: too many tokens: {} (max {MAX_TOKENS})", tokens.len()));
    }
    for (name, audience) in tokens {
        if name.trim().is_empty() {
            return Err("iam.tokens: token name must not be empty".to_owned());
        }
        if audience.trim().is_empty() {
            return Err(format!("iam.tokens.{name}.audience: audience is required"));
        }
        if name.len() > MAX_LENGTH || audience.len() > MAX_LENGTH {
            return Err(format!("iam.tokens: names and audiences have at most {MAX_LENGTH} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_few_and_have_names_and_audiences() {
        let check = |tokens: &[(&str, &str)]| {
            check_tokens(
                &tokens.iter().map(|(name, audience)| ((*name).into(), (*audience).into())).collect(),
            )
        };
        assert_eq!(check(&[("aws", "sts.amazonaws.com"), ("My Token", "a")]), Ok(()));
        for (tokens, reason) in [
            (&[("", "a")][..], "iam.tokens: token name must not be empty"),
            (&[("aws", " ")], "iam.tokens.aws.audience: audience is required"),
            (
                &[("a", "a"), ("b", "a"), ("c", "a"), ("d", "a"), ("e", "a"), ("f", "a")],
                "iam.tokens: too many tokens: 6 (max 5)",
            ),
        ] {
            assert_eq!(check(tokens).unwrap_err(), reason);
        }
    }
}
