//! Header values with placeholders: `${e2b.secrets.<name>}` and `${e2b.identity.tokens.<name>}`. All else is opaque text, also
//! `${...}` with other prefixes.

const SECRET: &str = "${e2b.secrets.";
const IDENTITY: &str = "${e2b.identity.tokens.";
/// Maximum length of a secret's name.
const MAX_SECRET_NAME: usize = 128;
/// Ids of secrets begin with it, and names may not.
const ID_PREFIX: &str = "sec_";

/// A header value, split at its placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its parts in order.
    pub parts: Vec<Part>,
}

/// A part of a header value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text that is sent as it is.
    Text(String),
    /// The value of the secret of this name.
    Secret(String),
    /// A token for the sandbox's identity of this name.
    Identity(String),
}

/// A placeholder is not closed, or its name is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Network transform header contains a malformed E2B placeholder.")]
pub struct MalformedPlaceholder;

impl Template {
    /// Splits a value at its placeholders, from left to right. What replaces a placeholder is not searched again.
    ///
    /// # Errors
    /// [`MalformedPlaceholder`].
    pub fn parse(value: &str) -> Result<Self, MalformedPlaceholder> {
        let (mut parts, mut rest) = (Vec::new(), value);
        while let Some((at, prefix)) = next_prefix(rest) {
            if at > 0 {
                parts.push(Part::Text(rest[..at].to_owned()));
            }
            let (name, after) = rest[at + prefix.len()..].split_once('}').ok_or(MalformedPlaceholder)?;
            if next_prefix(name).is_some() || name.is_empty() {
                return Err(MalformedPlaceholder);
            }
            parts.push(match prefix {
                SECRET => Part::Secret(secret_name(name).ok_or(MalformedPlaceholder)?),
                _ => Part::Identity(name.to_owned()),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Returns the names of the secrets that the value contains.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Secret(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Returns where the next placeholder starts, and its prefix.
fn next_prefix(text: &str) -> Option<(usize, &'static str)> {
    [SECRET, IDENTITY].into_iter().filter_map(|prefix| Some((text.find(prefix)?, prefix))).min()
}

/// Returns a secret's name as it is stored, trimmed and in lower case; `None` if it is not valid.
#[must_use]
pub fn secret_name(text: &str) -> Option<String> {
    let name = text.trim().to_ascii_lowercase();
    let is_valid = (1..=MAX_SECRET_NAME).contains(&name.len())
        && !name.starts_with(ID_PREFIX)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    is_valid.then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(value: &str) -> Vec<Part> {
        Template::parse(value).unwrap().parts
    }

    #[test]
    fn placeholders_are_found_and_the_rest_is_text() {
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(parts(""), []);
        assert_eq!(parts("Bearer x$ ${e2b.other.y} }"), [text("Bearer x$ ${e2b.other.y} }")]);
        assert_eq!(
            parts("Bearer ${e2b.secrets. API_Key }!${e2b.identity.tokens.My Token}"),
            [
                text("Bearer "),
                Part::Secret("api_key".to_owned()),
                text("!"),
                Part::Identity("My Token".to_owned())
            ]
        );
        assert_eq!(parts("${e2b.secrets.a}${e2b.secrets.b}").len(), 2);
    }

    #[test]
    fn malformed_placeholders_are_refused() {
        for value in [
            "${e2b.secrets.",
            "${e2b.secrets.a",
            "${e2b.secrets.}",
            "${e2b.secrets.a b}",
            "${e2b.secrets.sec_1}",
            "${e2b.secrets.${e2b.secrets.a}}",
            "${e2b.identity.tokens.}",
            "${e2b.identity.tokens.a${e2b.secrets.b}}",
            &format!("${{e2b.secrets.{}}}", "a".repeat(129)),
        ] {
            assert_eq!(Template::parse(value), Err(MalformedPlaceholder), "{value}");
        }
    }

    proptest! {
        #[test]
        fn text_without_prefixes_stays_as_it_is(value in "[ -~]{0,60}") {
            prop_assume!(!value.contains("${e2b."));
            let parts = parts(&value);
            prop_assert_eq!(parts.is_empty(), value.is_empty());
            prop_assert!(parts.iter().all(|part| *part == Part::Text(value.clone())));
        }
    }
}
