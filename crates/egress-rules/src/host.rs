//! Keys of rules: a host name or `*.` and a suffix, with an optional port.

use crate::HTTPS;

/// A checked key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostKey {
    /// The name, or the suffix of a wildcard; in lower case.
    name: String,
    is_wildcard: bool,
    pub(crate) port: Option<u16>,
}

impl HostKey {
    /// Parses a key in lower case; `None` if it is not a domain name.
    pub(crate) fn parse(key: &str) -> Option<Self> {
        let (host, port) = match key.split_once(':') {
            None => (key, None),
            Some((host, port)) => (host, Some(parse_port(port)?)),
        };
        let (name, is_wildcard) = match host.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (host, false),
        };
        is_host_name(name).then(|| Self { name: name.to_owned(), is_wildcard, port })
    }

    pub(crate) fn matches(&self, host: &str, port: u16) -> bool {
        self.port.unwrap_or(HTTPS) == port && self.matches_host(host)
    }

    /// Whether the key covers a host name in lower case. A wildcard covers any depth, but not the suffix itself.
    pub(crate) fn matches_host(&self, host: &str) -> bool {
        if !self.is_wildcard {
            return self.name == host;
        }
        let head = host.strip_suffix(self.name.as_str()).and_then(|head| head.strip_suffix('.'));
        head.is_some_and(|head| !head.is_empty() && head.split('.').all(|label| !label.is_empty()))
    }

    /// Orders keys that match the same host: exact names first, then longer suffixes, then keys with a port.
    pub(crate) fn specificity(&self) -> (bool, usize, bool) {
        (!self.is_wildcard, self.name.len(), self.port.is_some())
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_plain = !digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| is_plain)
}

/// Whether a pattern, a host name or `*.` and a suffix, covers a host.
#[must_use]
pub fn covers(pattern: &str, host: &str) -> bool {
    let key = HostKey::parse(&pattern.to_ascii_lowercase());
    key.is_some_and(|key| key.port.is_none() && key.matches_host(host))
}

/// Whether the text is a host name in lower case: labels of letters, digits and inner hyphens. Addresses are none.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let last_is_number =
        name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && !last_is_number && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_names_wildcards_and_ports() {
        for key in
            ["example.com", "*.example.com", "*.com", "localhost", "a.b:8443", "8080-i1.sandbox.test:3000"]
        {
            assert!(HostKey::parse(key).is_some(), "{key}");
        }
        for key in [
            "*",
            "*.",
            "*.*.com",
            "a.*.com",
            "*a.com",
            "1.2.3.4",
            "::1",
            "[::1]",
            "10.0.0.0/8",
            "https://a.b",
            "a.b.",
            ".a.b",
            "a..b",
            "-a.b",
            "a_b.c",
            "a.b:",
            "a.b:0",
            "a.b:70000",
            "a.b:+1",
            "a.b:1:2",
            "a b",
            "é.com",
        ] {
            assert!(HostKey::parse(key).is_none(), "{key}");
        }
    }

    #[test]
    fn wildcards_cover_any_depth_but_not_the_suffix() {
        let key = HostKey::parse("*.example.com").unwrap();
        for host in ["a.example.com", "a.b.example.com"] {
            assert!(key.matches(host, HTTPS), "{host}");
        }
        for host in
            ["example.com", "notexample.com", ".example.com", "a..example.com", "example.com.evil.test"]
        {
            assert!(!key.matches(host, HTTPS), "{host}");
        }
        assert!(!key.matches("a.example.com", 8443));
        assert!(HostKey::parse("a.b:8443").unwrap().matches("a.b", 8443));
        assert!(!HostKey::parse("a.b:8443").unwrap().matches("a.b", HTTPS));
    }
}
