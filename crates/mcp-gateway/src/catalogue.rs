//! The catalogue: which package, remote address or command is behind a server's name, and what its options become.
//! `templates/mcp-gateway/catalogue.toml` is compiled in; `/etc/mcp-gateway/servers.toml` of the sandbox adds to it and overrides it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::Error;

const BUILT_IN: &str = include_str!("../../../templates/mcp-gateway/catalogue.toml");
const OWN: &str = "/etc/mcp-gateway/servers.toml";

/// One server of the catalogue.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Entry {
    /// An npm package with its version.
    pub(crate) npm: Option<String>,
    /// A PyPI requirement.
    pub(crate) pypi: Option<String>,
    /// Further PyPI requirements.
    pub(crate) with: Vec<String>,
    /// The program, if the package has several.
    pub(crate) bin: Option<String>,
    /// The address of a remote server.
    pub(crate) url: Option<String>,
    /// Whether the remote server speaks the older transport (HTTP with SSE).
    pub(crate) sse: bool,
    /// The option that is the remote server's bearer token.
    pub(crate) bearer: Option<String>,
    /// A command line instead of a package.
    pub(crate) command: Option<Vec<String>>,
    pub(crate) args: Vec<String>,
    pub(crate) fixed: BTreeMap<String, String>,
    pub(crate) required: Vec<String>,
    pub(crate) optional: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl Entry {
    /// What is behind the name, for people.
    pub(crate) fn origin(&self) -> String {
        let package = self.npm.as_ref().map(|npm| format!("npm {npm}"));
        let package = package.or_else(|| self.pypi.as_ref().map(|pypi| format!("PyPI {pypi}")));
        let package = package.or_else(|| self.url.clone());
        package
            .or_else(|| self.command.as_ref().map(|words| words.join(" ")))
            .unwrap_or_else(|| "container image only".to_owned())
    }
}

pub(crate) type Catalogue = BTreeMap<String, Entry>;

/// Reads the catalogue.
///
/// # Errors
/// A file is not as it must be.
pub(crate) fn load() -> Result<Catalogue, Error> {
    let mut all = parse("the catalogue", BUILT_IN)?;
    if Path::new(OWN).exists() {
        let text = std::fs::read_to_string(OWN).map_err(Error::io(OWN))?;
        all.extend(parse(OWN, &text)?);
    }
    Ok(all)
}

fn parse(path: &str, text: &str) -> Result<Catalogue, Error> {
    toml::from_str(text)
        .map_err(|error| Error::Catalogue { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_has_at_most_one_origin_and_uses_only_its_options() {
        let all = parse("built in", BUILT_IN).expect("the catalogue is valid");
        assert!(all.len() >= 265, "{}", all.len());
        for (name, entry) in &all {
            let origins =
                [entry.npm.is_some(), entry.pypi.is_some(), entry.url.is_some(), entry.command.is_some()];
            assert!(origins.iter().filter(|given| **given).count() <= 1, "{name}");
            let known =
                |option: &str| entry.required.iter().chain(&entry.optional).any(|other| other == option);
            assert!(entry.env.keys().all(|option| known(option)), "{name}");
            assert!(entry.bearer.as_deref().is_none_or(known), "{name}");
        }
    }

    #[test]
    fn packages_have_exact_versions() {
        for (name, entry) in parse("built in", BUILT_IN).expect("the catalogue is valid") {
            assert!(
                entry
                    .npm
                    .is_none_or(|npm| npm.rsplit_once('@').is_some_and(|(package, _)| !package.is_empty())),
                "{name}"
            );
            assert!(entry.pypi.is_none_or(|pypi| pypi.contains("==")), "{name}");
        }
    }
}
