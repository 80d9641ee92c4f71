//! Manifests, indexes and configurations of images, in OCI's and Docker's form: the fields that are needed here.
//! Unknown fields are ignored; a missing field is an error where it is needed. Only Linux images of the wanted architecture are chosen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::OciError;
use crate::digest::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Maximum size of a manifest, index or configuration, bytes.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// Maximum number of layers of an image. Overlayfs allows 500, and templates add their own.
const MAX_LAYERS: usize = 256;

/// Media type, size and digest of a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// An index or a manifest, distinguished by their fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug)]
pub(crate) enum Choice {
    /// Several images.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowermost first.
    pub(crate) layers: Vec<Descriptor>,
}

/// Parses an index or manifest.
pub(crate) fn choice(text: &[u8]) -> Result<Choice, OciError> {
    let document: Document =
        serde_json::from_slice(text).map_err(|error| OciError::malformed("the image's manifest", &error))?;
    match document {
        Document { schema_version: Some(1), .. } => Err(OciError::malformed(
            "the image's manifest",
            &"it is of Docker's old schema 1; push the image again",
        )),
        Document { manifests: Some(list), .. } => Ok(Choice::Index(list)),
        Document { config: Some(config), layers: Some(layers), .. } => {
            if layers.len() > MAX_LAYERS {
                return Err(OciError::malformed("the image's manifest", &"it has more than 256 layers"));
            }
            Ok(Choice::Manifest(Manifest { config, layers }))
        }
        _ => Err(OciError::malformed("the image's manifest", &"it is neither a manifest nor an index")),
    }
}

/// Returns the host's architecture, as named in images.
#[must_use]
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Returns the image for an architecture among several; of several variants the baseline one.
pub(crate) fn pick<'a>(list: &'a [Descriptor], architecture: &str) -> Result<&'a Descriptor, OciError> {
    // Attestations are listed beside images, with an unknown platform.
    let images = || {
        list.iter().filter_map(|item| {
            let platform = item.platform.as_ref()?;
            (platform.os == "linux").then_some((item, platform))
        })
    };
    let ours = images().filter(|(_, platform)| platform.architecture == architecture);
    let plainest = ours.min_by_key(|(_, platform)| match (architecture, platform.variant.as_deref()) {
        // The baseline of all 64-bit ARM images.
        (_, None | Some("")) | ("arm64", Some("v8")) => String::new(),
        (_, Some(variant)) => variant.to_owned(),
    });
    if let Some((item, _)) = plainest {
        return Ok(item);
    }
    if let [only] = list
        && only.platform.is_none()
    {
        return Ok(only);
    }
    match images().next() {
        Some((_, platform)) => Err(OciError::Architecture {
            found: platform.architecture.clone(),
            expected: architecture.to_owned(),
        }),
        None => {
            let os = list.iter().find_map(|item| item.platform.as_ref()).map(|platform| platform.os.clone());
            Err(OciError::OperatingSystem(os.unwrap_or_default()))
        }
    }
}

/// An image's configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Settings>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

impl Config {
    pub(crate) fn parse(text: &[u8], architecture: &str) -> Result<Self, OciError> {
        let config: Self = serde_json::from_slice(text)
            .map_err(|error| OciError::malformed("the image's configuration", &error))?;
        if config.os != "linux" {
            return Err(OciError::OperatingSystem(config.os));
        }
        if config.architecture != architecture {
            return Err(OciError::Architecture {
                found: config.architecture,
                expected: architecture.to_owned(),
            });
        }
        Ok(config)
    }

    /// Returns the digests of the uncompressed layers, lowermost first; an error unless there are `layers` of them.
    pub(crate) fn diff_ids(&self, layers: usize) -> Result<Vec<Digest>, OciError> {
        let ids = self.rootfs.as_ref().and_then(|rootfs| rootfs.diff_ids.clone()).unwrap_or_default();
        if ids.len() != layers {
            let why = format!("it names {} layers, and the manifest {layers}", ids.len());
            return Err(OciError::malformed("the image's configuration", &why));
        }
        Ok(ids)
    }

    /// Returns the environment variables; those without a value are left out.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let list = self.config.as_ref().and_then(|settings| settings.env.as_deref()).unwrap_or_default();
        let pairs = list.iter().filter_map(|entry| entry.split_once('='));
        pairs
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: None,
            digest: Digest::of(format!("{os}/{architecture}/{variant:?}").as_bytes()),
            size: 2,
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_baseline_variant_is_picked() {
        let list = [
            item("unknown", "unknown", None),
            item("linux", "arm64", Some("v8")),
            item("linux", "amd64", Some("v3")),
            item("linux", "amd64", None),
            item("windows", "amd64", None),
        ];
        assert_eq!(pick(&list, "amd64").unwrap().digest, list[3].digest);
        assert_eq!(pick(&list, "arm64").unwrap().digest, list[1].digest);
        assert_eq!(
            pick(&list[..2], "amd64").unwrap_err().to_string(),
            r#"image architecture "arm64" does not match expected "amd64""#
        );
        let error = pick(&list[4..], "amd64").unwrap_err().to_string();
        assert_eq!(error, r#"image operating system "windows" is not "linux""#);
    }

    #[test]
    fn empty_environment_entries_are_dropped() {
        let text = br#"{"os":"linux","architecture":"amd64","config":{"Env":["A=1","B=","C","=x","D=a=b"]}}"#;
        let env = Config::parse(text, "amd64").unwrap().env();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env, [pair("A", "1"), pair("D", "a=b")]);
        assert!(Config::parse(br#"{"os":"linux","architecture":"amd64","config":null}"#, "amd64").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_document_makes_it_panic(
            changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..6),
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let digest = format!("sha256:{}", "a".repeat(64));
            let blob = format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":7}}"#);
            let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{blob},"layers":[{blob}]}}"#);
            let index = format!(r#"{{"schemaVersion":2,"manifests":[{blob}]}}"#);
            let config = format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=1"]}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#);
            for text in [manifest, index, config] {
                let mut text = text.into_bytes();
                for (at, value) in &changes {
                    let at = at.index(text.len());
                    text[at] = *value;
                }
                let _ = choice(&text);
                if let Ok(config) = Config::parse(&text, "amd64") {
                    let _ = (config.diff_ids(1), config.env());
                }
            }
            let _ = choice(&noise);
        }
    }
}
