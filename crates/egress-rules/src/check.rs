//! Validation of rules. Order and texts are those of the wire contract.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::HostKey;
use crate::{HeaderRule, MalformedPlaceholder, NetworkRules, Rule, Rules, Template};

/// Maximum number of keys.
const MAX_HOSTS: usize = 10;
/// Maximum length of a key, characters.
const MAX_KEY: usize = 128;
/// Maximum number of headers of a rule.
const MAX_HEADERS: usize = 20;
/// Maximum length of a header's name, characters.
const MAX_NAME: usize = 64;
/// Maximum length of a header's value before placeholders are replaced, bytes.
const MAX_VALUE: usize = 2048;
/// Maximum number of distinct secrets in the rule of a key.
const MAX_SECRETS: usize = 32;

/// Headers that say where a message ends or which connection it is on: a rule that sets them would break requests.
const FRAMING: [&str; 7] =
    ["content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer"];

/// Why rules are refused. The texts are the wire contract's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum RuleError {
    #[error("Network rules can have at most {MAX_HOSTS} domains.")]
    TooManyHosts,
    #[error("Rule domain must not be empty.")]
    EmptyHost,
    #[error("Rule domain \"{0}\" exceeds maximum length of {MAX_KEY} characters.")]
    LongHost(String),
    #[error("Rule domain \"{0}\" is not a valid domain name.")]
    InvalidHost(String),
    #[error("Rule domain \"{0}\" is given more than once.")]
    RepeatedHost(String),
    #[error("Domain \"{0}\" can have at most 1 transform rule.")]
    TooManyRules(String),
    #[error("Domain \"{0}\" can have at most {MAX_HEADERS} headers per rule.")]
    TooManyHeaders(String),
    #[error("Header name in rule for domain \"{0}\" must not be empty.")]
    EmptyName(String),
    #[error(
        "Header name \"{name}\" in rule for domain \"{host}\" must contain only valid HTTP token characters."
    )]
    InvalidName { host: String, name: String },
    #[error(
        "Header name \"{name}\" in rule for domain \"{host}\" exceeds maximum length of {MAX_NAME} characters."
    )]
    LongName { host: String, name: String },
    #[error(
        "Header name \"{name}\" in rule for domain \"{host}\" cannot be set: it belongs to the connection."
    )]
    FramingName { host: String, name: String },
    #[error("Header name \"{name}\" in rule for domain \"{host}\" is given more than once.")]
    RepeatedName { host: String, name: String },
    #[error("Value for header \"{name}\" in rule for domain \"{host}\" contains invalid characters.")]
    InvalidValue { host: String, name: String },
    #[error(
        "Value for header \"{name}\" in rule for domain \"{host}\" exceeds maximum length of {MAX_VALUE} characters."
    )]
    LongValue { host: String, name: String },
    #[error(transparent)]
    Placeholder(#[from] MalformedPlaceholder),
    #[error("Rule domain \"{0}\" references more than {MAX_SECRETS} secrets.")]
    TooManySecrets(String),
}

impl NetworkRules {
    /// Returns these rules as they are stored: keys in lower case.
    ///
    /// # Errors
    /// Two keys differ only in case.
    pub fn normalized(self) -> Result<Self, RuleError> {
        let mut lower = BTreeMap::new();
        for (key, rules) in self.0 {
            if lower.insert(key.to_ascii_lowercase(), rules).is_some() {
                return Err(RuleError::RepeatedHost(key));
            }
        }
        Ok(Self(lower))
    }

    /// Checks the rules.
    ///
    /// # Errors
    /// The first violation, host by host.
    pub fn check(&self) -> Result<Rules, RuleError> {
        if self.0.len() > MAX_HOSTS {
            return Err(RuleError::TooManyHosts);
        }
        let mut checked: Vec<(HostKey, HeaderRule)> = Vec::new();
        for (key, rules) in &self.0 {
            let host = check_host(key)?;
            if checked.iter().any(|(other, _)| *other == host) {
                return Err(RuleError::RepeatedHost(key.clone()));
            }
            let rule = match rules.as_slice() {
                [] => HeaderRule::default(),
                [rule] => check_rule(key, rule)?,
                _ => return Err(RuleError::TooManyRules(key.clone())),
            };
            checked.push((host, rule));
        }
        Ok(Rules(checked))
    }
}

fn check_host(key: &str) -> Result<HostKey, RuleError> {
    if key.is_empty() {
        return Err(RuleError::EmptyHost);
    }
    if key.chars().count() > MAX_KEY {
        return Err(RuleError::LongHost(key.to_owned()));
    }
    HostKey::parse(&key.to_ascii_lowercase()).ok_or_else(|| RuleError::InvalidHost(key.to_owned()))
}

fn check_rule(host: &str, rule: &Rule) -> Result<HeaderRule, RuleError> {
    let none = BTreeMap::new();
    let headers = rule.transform.as_ref().and_then(|transform| transform.headers.as_ref()).unwrap_or(&none);
    if headers.len() > MAX_HEADERS {
        return Err(RuleError::TooManyHeaders(host.to_owned()));
    }
    let mut names = BTreeSet::new();
    let mut checked = HeaderRule::default();
    for (name, value) in headers {
        check_name(host, name)?;
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(RuleError::RepeatedName { host: host.to_owned(), name: name.clone() });
        }
        let named = || (host.to_owned(), name.clone());
        if value.chars().any(|char| char.is_control() && char != '\t') {
            let (host, name) = named();
            return Err(RuleError::InvalidValue { host, name });
        }
        if value.len() > MAX_VALUE {
            let (host, name) = named();
            return Err(RuleError::LongValue { host, name });
        }
        checked.headers.push((name.clone(), Template::parse(value)?));
    }
    let secrets: BTreeSet<&str> = checked.headers.iter().flat_map(|(_, value)| value.secrets()).collect();
    if secrets.len() > MAX_SECRETS {
        return Err(RuleError::TooManySecrets(host.to_owned()));
    }
    Ok(checked)
}

fn check_name(host: &str, name: &str) -> Result<(), RuleError> {
    let named = || (host.to_owned(), name.to_owned());
    if name.is_empty() {
        return Err(RuleError::EmptyName(host.to_owned()));
    }
    if !name.bytes().all(is_token_byte) {
        let (host, name) = named();
        return Err(RuleError::InvalidName { host, name });
    }
    if name.len() > MAX_NAME {
        let (host, name) = named();
        return Err(RuleError::LongName { host, name });
    }
    let lower = name.to_ascii_lowercase();
    if FRAMING.contains(&lower.as_str()) || lower.starts_with("proxy-") {
        let (host, name) = named();
        return Err(RuleError::FramingName { host, name });
    }
    Ok(())
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(rules: Value) -> NetworkRules {
        serde_json::from_value(rules).unwrap()
    }

    fn headers(pairs: &[(&str, &str)]) -> Value {
        let headers: BTreeMap<_, _> = pairs.iter().copied().collect();
        json!({"a.example": [{"transform": {"headers": headers}}]})
    }

    #[test]
    fn empty_forms_are_valid_and_stay_as_they_are() {
        for rules in [
            json!({}),
            json!({"a.example": []}),
            json!({"a.example": [{}]}),
            json!({"a.example": [{"transform": {}}]}),
            json!({"a.example": [{"transform": {"headers": {}}}]}),
        ] {
            let parsed = parse(rules.clone());
            let checked = parsed.check().unwrap();
            assert_eq!(checked.find("a.example", 443), None);
            assert!(!checked.concern_port(443));
            assert_eq!(serde_json::to_value(&parsed).unwrap(), rules);
        }
        assert_eq!(parse(json!({"a.example": null})).0["a.example"], []);
        assert_eq!(parse(json!({"a.example": [{"transform": null}]})).0["a.example"], [Rule::default()]);
        assert!(serde_json::from_value::<NetworkRules>(json!({"a.example": [{"block": true}]})).is_err());
    }

    #[test]
    fn violations_have_the_contracts_texts() {
        let many: BTreeMap<_, _> = (0..11).map(|i| (format!("h{i}.example"), json!([]))).collect();
        let name = "n".repeat(65);
        let key = "k".repeat(129);
        let many_headers: Vec<_> = (0..21).map(|i| (format!("X-{i}"), "v".to_owned())).collect();
        let many_headers: Vec<_> = many_headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let secrets: String = (0..33).map(|i| format!("${{e2b.secrets.s{i}}}")).collect();
        for (rules, message) in [
            (json!(many), "Network rules can have at most 10 domains.".to_owned()),
            (json!({"": []}), "Rule domain must not be empty.".to_owned()),
            (json!({(key.clone()): []}), format!("Rule domain \"{key}\" exceeds maximum length of 128 characters.")),
            (json!({"1.2.3.4": []}), "Rule domain \"1.2.3.4\" is not a valid domain name.".to_owned()),
            (json!({"a.b": [{}, {}]}), "Domain \"a.b\" can have at most 1 transform rule.".to_owned()),
            (headers(&many_headers), "Domain \"a.example\" can have at most 20 headers per rule.".to_owned()),
            (headers(&[("", "v")]), "Header name in rule for domain \"a.example\" must not be empty.".to_owned()),
            (
                headers(&[(":authority", "v")]),
                "Header name \":authority\" in rule for domain \"a.example\" must contain only valid HTTP token characters."
                    .to_owned(),
            ),
            (
                headers(&[(&name, "v")]),
                format!("Header name \"{name}\" in rule for domain \"a.example\" exceeds maximum length of 64 characters."),
            ),
            (
                headers(&[("X-A", "a\nb")]),
                "Value for header \"X-A\" in rule for domain \"a.example\" contains invalid characters.".to_owned(),
            ),
            (
                headers(&[("X-A", &"v".repeat(2049))]),
                "Value for header \"X-A\" in rule for domain \"a.example\" exceeds maximum length of 2048 characters."
                    .to_owned(),
            ),
            (
                headers(&[("X-A", "${e2b.secrets.")]),
                "Network transform header contains a malformed E2B placeholder.".to_owned(),
            ),
            (headers(&[("X-A", &secrets)]), "Rule domain \"a.example\" references more than 32 secrets.".to_owned()),
            (
                headers(&[("Content-Length", "1")]),
                "Header name \"Content-Length\" in rule for domain \"a.example\" cannot be set: it belongs to the connection."
                    .to_owned(),
            ),
            (
                headers(&[("X-A", "1"), ("x-a", "2")]),
                "Header name \"x-a\" in rule for domain \"a.example\" is given more than once.".to_owned(),
            ),
        ] {
            assert_eq!(parse(rules).check().unwrap_err().to_string(), message);
        }
        assert!(parse(json!({"A.b": [], "a.B": []})).normalized().is_err());
        assert!(parse(headers(&[("X-A", "a\tb"), ("Authorization", "")])).check().is_ok());
    }

    #[test]
    fn the_exact_key_wins_then_the_longest_suffix() {
        let set = |value: &str| json!([{"transform": {"headers": {"X": value}}}]);
        let rules = parse(json!({
            "*.example.com": set("wide"), "*.a.example.com": set("narrow"), "b.a.example.com": set("exact"),
            "none.example.com": [], "*.example.com:8443": set("port"),
        }));
        let rules = rules.check().unwrap();
        let found = |host: &str, port| match rules.find(host, port)?.headers[0].1.parts.as_slice() {
            [crate::Part::Text(text)] => Some(text.clone()),
            _ => None,
        };
        assert_eq!(found("x.example.com", 443).as_deref(), Some("wide"));
        assert_eq!(found("x.a.example.com", 443).as_deref(), Some("narrow"));
        assert_eq!(found("b.a.example.com", 443).as_deref(), Some("exact"));
        assert_eq!(found("none.example.com", 443), None, "the exact key has no headers");
        assert_eq!(found("x.example.com", 8443).as_deref(), Some("port"));
        assert_eq!(found("example.com", 443), None);
        assert!(rules.concern_port(443) && rules.concern_port(8443) && !rules.concern_port(80));
    }
}
