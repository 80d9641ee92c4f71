//! [`TemplateRef`]: how requests name templates, `[namespace/]alias[:tag]`.
//! Names are compared in lower case without surrounding spaces; the tag `default` is the same as no tag.
//! This module only parses; the catalog decides which team sees which template.

use crate::CatalogError;

/// The tag that a name without a tag refers to.
pub const DEFAULT_TAG: &str = "default";

/// A parsed template name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRef {
    /// A team's slug.
    pub namespace: Option<String>,
    /// An alias or a template id.
    pub name: String,
    /// A tag other than `default`.
    pub tag: Option<String>,
}

impl TemplateRef {
    /// Parses a name.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] names the malformed part.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let text = text.trim().to_lowercase();
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(namespace.trim()), rest),
            None => (None, text.as_str()),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name.trim(), Some(tag.trim())),
            None => (rest.trim(), None),
        };
        if let Some(namespace) = namespace
            && !is_name(namespace)
        {
            return Err(CatalogError::Invalid(format!("invalid namespace: {namespace}")));
        }
        if !is_name(name) {
            return Err(CatalogError::Invalid(format!("invalid template ID: {name}")));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(CatalogError::Invalid(format!("invalid tag: {tag}")));
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.filter(|tag| *tag != DEFAULT_TAG).map(str::to_owned),
        })
    }

    /// Returns the tag to look up.
    #[must_use]
    pub fn tag_or_default(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// Returns the name without the tag, for error messages.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_and_normalised() {
        let cases = [
            ("base", (None, "base", None)),
            (" Base ", (None, "base", None)),
            ("base:default", (None, "base", None)),
            ("base:v1.2", (None, "base", Some("v1.2"))),
            ("Team/Base:V1", (Some("team"), "base", Some("v1"))),
        ];
        for (text, (namespace, name, tag)) in cases {
            let parsed = TemplateRef::parse(text).unwrap();
            assert_eq!(
                (parsed.namespace.as_deref(), parsed.name.as_str(), parsed.tag.as_deref()),
                (namespace, name, tag),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_parts_are_named() {
        for (text, message) in [
            ("", "invalid template ID: "),
            ("a b", "invalid template ID: a b"),
            ("../etc", "invalid namespace: .."),
            ("a/b/c", "invalid template ID: b/c"),
            (":v1", "invalid template ID: "),
            ("base:", "invalid tag: "),
            ("base:a:b", "invalid tag: a:b"),
            ("/base", "invalid namespace: "),
        ] {
            assert_eq!(TemplateRef::parse(text).unwrap_err().to_string(), message, "{text:?}");
        }
    }
}
