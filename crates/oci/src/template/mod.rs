//! Templates as archives: an OCI layout in a tar, with layers as tar with zstd and a configuration that the caller defines.
//! The same template always gives the same bytes; an import on another host gives the same layers, or an error.
//! Files that OCI images cannot contain (sockets, renamed directories) are written with records of our own.

mod export;
mod import;
mod portable;
mod write;

pub use export::export_template;
pub use import::{Template, import_template};
pub use portable::make_portable;

/// The manifest's artifact type; the number is the version of the format.
const ARTIFACT: &str = "application/vnd.cofferdam.template.v1";
/// The artifact type without the version.
const ARTIFACT_FAMILY: &str = "application/vnd.cofferdam.template.";
/// The configuration's media type.
const CONFIG: &str = "application/vnd.cofferdam.template.config.v1+json";
const LAYER: &str = "application/vnd.cofferdam.template.layer.v1.tar+zstd";
/// Annotations of each layer: its digest in a layer store, and the digest of its tar.
const LAYER_DIGEST: &str = "dev.cofferdam.layer-digest";
const DIFF_ID: &str = "dev.cofferdam.diff-id";
