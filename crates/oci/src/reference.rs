//! Image references as Docker reads them: `[host[:port]/]path[:tag][@digest]`.
//! A reference whose first part has no dot or port and is not `localhost` belongs to Docker Hub, where names without a slash are in
//! `library/`.

use std::fmt;
use std::str::FromStr;

use crate::OciError;
use crate::digest::Digest;

/// Docker Hub's host in references.
const DOCKER_HUB: &str = "docker.io";
/// Maximum length of a repository with its host, characters.
const MAX_NAME: usize = 255;
/// Maximum length of a tag, characters.
const MAX_TAG: usize = 128;

/// An image reference: registry, repository, and a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    given: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the reference as it was written, for messages.
    #[must_use]
    pub fn as_given(&self) -> &str {
        &self.given
    }

    /// Returns the host with its port, if any; `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the path in the registry, such as `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; `latest` if the reference has neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, which takes precedence over the tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns what to request from a registry: the digest, else the tag.
    pub(crate) fn version(&self) -> String {
        self.digest.as_ref().map_or_else(|| self.tag.clone().unwrap_or_default(), ToString::to_string)
    }
}

/// The full form.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        parse(text).map_err(|why| OciError::Reference { text: text.chars().take(300).collect(), why })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err("64 hex digits are an image's id; give its name");
    }
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            let digest = digest.parse().map_err(|_| "its digest is not sha256: and 64 hex digits")?;
            (name, Some(digest))
        }
    };
    // A colon in the last part begins a tag; before a slash it begins a port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is not letters, digits, '_', '.' and '-' (at most 128)");
    }
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if is_registry(host) => (host, path),
        _ => (DOCKER_HUB, name),
    };
    if !is_host(registry) {
        return Err("its registry is not a host name with perhaps a port");
    }
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if !path.split('/').all(is_component) {
        return Err(
            "its repository is not parts of lower-case letters and digits, joined by '.', '_', '__' or '-'",
        );
    }
    let repository = if registry == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { given: text.to_owned(), registry: registry.to_ascii_lowercase(), repository, tag, digest })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().enumerate().all(|(i, b)| is_word(b) || (i > 0 && matches!(b, b'.' | b'-')))
}

/// Returns whether the part before the first slash is a host, not a name of Docker Hub.
fn is_registry(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                None if rest.is_empty() => return true,
                None => return false,
                Some(port) => ("v6", Some(port)),
            }
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return false;
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Lower-case letters and digits with single separators between: one '.', one or two '_', any number of '-'.
fn is_component(part: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_are_plain =
        bytes.first().is_some_and(|b| is_plain(*b)) && bytes.last().is_some_and(|b| is_plain(*b));
    ends_are_plain
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let zeros = "0".repeat(64);
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim"),
            ("e2bdev/base", "docker.io/e2bdev/base:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:1.0", "localhost:5000/a/b:1.0"),
            ("ghcr.io/x/y_z__q/w-v.u:T_a.g-1", "ghcr.io/x/y_z__q/w-v.u:T_a.g-1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("GHCR.io/x", "ghcr.io/x:latest"),
            (&format!("a@sha256:{zeros}"), &format!("docker.io/library/a@sha256:{zeros}")),
            (&format!("q.io/a:t@sha256:{zeros}"), &format!("q.io/a:t@sha256:{zeros}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn invalid_references_are_refused() {
        let long = "a".repeat(250);
        let id = "0".repeat(64);
        for text in [
            "",
            "Debian",
            "A/a",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b c",
            "a:-x",
            "a@sha256:12",
            "a@md5:00",
            "-a",
            "a..b",
            "a___b",
            "a b",
            "https://x.io/a",
            "x.io:0/a",
            "x.io:99999/a",
            "x.io/",
            "../a",
            "a/../b",
            "x_y.io/a",
            &long,
            &id,
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid image reference '{text}': ")), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_full_form_reads_as_itself(text in "[a-zA-Z0-9.:/_@-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                proptest::prop_assert_eq!(again.to_string(), reference.to_string());
            }
        }
    }
}
