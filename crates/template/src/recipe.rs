//! Recipes (`recipe.toml`): packages, a setup script, and defaults and resources of sandboxes.
//! A recipe's fingerprint covers everything that determines the layer, so an unchanged recipe is not built twice.
//! Recipes are written by us or the operator and are trusted, unlike images.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::TemplateError;

const BASE_RECIPE: &str = include_str!("../../../templates/base/recipe.toml");
const BASE_SETUP: &str = include_str!("../../../templates/base/setup.sh");
const BASE_SYSTEMCTL: &str = include_str!("../../../templates/base/systemctl");

/// Recipe that replaces an official Debian image. It includes the packages that templates from images need, so that these are not
/// installed later, when no mirror may be reachable.
const DEBIAN_RECIPE: &str = r#"
name = "debian:SUITE"
[bootstrap]
suite = "SUITE"
mirror = "http://deb.debian.org/debian"
packages = ["bash", "ca-certificates", "curl", "git", "iproute2", "procps", "sudo", "tar"]
setup = "setup.sh"
[config]
user = "root"
workdir = "/"
[resources]
cpu_count = 2
memory_mib = 1024
disk_mib = 10240
"#;
const DEBIAN_SETUP: &str = "rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/* /tmp/* /run/*\n: > /etc/machine-id\n";

/// A recipe with its setup script and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub(crate) file: RecipeFile,
    pub(crate) setup: String,
    /// Contents of programs, by where they are put in the template.
    pub(crate) programs: BTreeMap<String, String>,
    fingerprint: String,
}

/// `recipe.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecipeFile {
    pub(crate) name: String,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) config: RecipeConfig,
    pub(crate) resources: RecipeResources,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bootstrap {
    pub(crate) suite: String,
    pub(crate) mirror: String,
    pub(crate) packages: Vec<String>,
    pub(crate) setup: String,
    /// Files beside the recipe that become programs: where they are put, by their names.
    #[serde(default)]
    pub(crate) programs: BTreeMap<String, String>,
}

/// Defaults of sandboxes from the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeConfig {
    /// User of commands that name none.
    pub user: String,
    /// Working directory of commands that name none.
    pub workdir: String,
}

/// Limits of sandboxes from the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeResources {
    /// Number of processors.
    pub cpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Writable disk, MiB.
    pub disk_mib: u32,
}

fn not_compiled_in(name: &str) -> TemplateError {
    TemplateError::Io { path: name.into(), source: std::io::ErrorKind::NotFound.into() }
}

impl Recipe {
    /// Returns the compiled-in recipe of the `base` template.
    ///
    /// # Errors
    /// Never in a build that passes its tests.
    pub fn base() -> Result<Self, TemplateError> {
        Self::parse(BASE_RECIPE, |name| match name {
            "setup.sh" => Ok(BASE_SETUP.to_owned()),
            "systemctl" => Ok(BASE_SYSTEMCTL.to_owned()),
            _ => Err(not_compiled_in(name)),
        })
    }

    /// Returns the recipe that replaces an official Debian image, `library/debian:<tag>`; `None` for any other image.
    #[must_use]
    pub fn debian(image: &str) -> Option<Self> {
        let tag = image.strip_prefix("library/debian:")?;
        let release = tag.strip_suffix("-slim").unwrap_or(tag);
        let suite = match release {
            "latest" | "stable" | "13" => "trixie",
            "oldstable" | "12" => "bookworm",
            "testing" | "14" => "forky",
            "unstable" => "sid",
            "trixie" | "bookworm" | "forky" | "sid" => release,
            _ => return None,
        };
        Self::parse(&DEBIAN_RECIPE.replace("SUITE", suite), |_| Ok(DEBIAN_SETUP.to_owned())).ok()
    }

    /// Reads `recipe.toml` and the files that it names from a directory.
    ///
    /// # Errors
    /// A file is missing or the recipe is not valid.
    pub fn load(dir: &Path) -> Result<Self, TemplateError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| TemplateError::Io { path, source })
        };
        Self::parse(&read("recipe.toml")?, read)
    }

    fn parse(
        text: &str,
        read: impl Fn(&str) -> Result<String, TemplateError>,
    ) -> Result<Self, TemplateError> {
        let file: RecipeFile = toml::from_str(text)?;
        let setup = read(&file.bootstrap.setup)?;
        let programs = file.bootstrap.programs.iter().map(|(name, to)| Ok((to.clone(), read(name)?)));
        let programs: BTreeMap<String, String> = programs.collect::<Result<_, TemplateError>>()?;
        let mut hash = Sha256::new();
        // Version of the bootstrap; to be changed when the same recipe would become another tree.
        hash.update("cofferdam recipe 1\0");
        hash.update(text);
        hash.update("\0");
        hash.update(&setup);
        for (to, content) in &programs {
            hash.update("\0");
            hash.update(to);
            hash.update("\0");
            hash.update(content);
        }
        Ok(Self { file, setup, programs, fingerprint: hex::encode(hash.finalize()) })
    }

    /// Returns the template's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Returns the defaults of its sandboxes.
    #[must_use]
    pub fn config(&self) -> &RecipeConfig {
        &self.file.config
    }

    /// Returns the limits of its sandboxes.
    #[must_use]
    pub fn resources(&self) -> RecipeResources {
        self.file.resources
    }

    /// Returns the recipe's fingerprint, which changes with everything that determines the layer.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_recipe_is_the_one_in_the_dir() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates/base");
        let recipe = Recipe::base().unwrap();
        assert_eq!(Recipe::load(&dir).unwrap(), recipe);
        assert_eq!(recipe.name(), "base");
        assert_eq!(recipe.config().user, "user");
    }

    #[test]
    fn debian_images_have_recipes_and_no_others() {
        let name = |image: &str| Recipe::debian(image).map(|recipe| recipe.name().to_owned());
        assert_eq!(name("library/debian:stable-slim").as_deref(), Some("debian:trixie"));
        assert_eq!(name("library/debian:bookworm").as_deref(), Some("debian:bookworm"));
        assert_eq!(name("library/ubuntu:latest"), None);
        assert_eq!(name("library/debian:woody"), None);
        assert_eq!(name("ghcr.io/library/debian:stable"), None);
    }

    #[test]
    fn a_changed_script_is_another_recipe() {
        let other = Recipe::parse(BASE_RECIPE, |name| Ok(format!("{name} of another version"))).unwrap();
        assert_ne!(other.fingerprint(), Recipe::base().unwrap().fingerprint());
        assert!(Recipe::parse("name = 1", |_| Ok(String::new())).is_err());
    }
}
