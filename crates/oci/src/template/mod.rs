//! Templates as archives: an OCI layout in one tar, its layers as tar with zstd, its configuration as the caller gives it.
//! The same template gives the same bytes; importing it elsewhere gives the same layers, or an error.
//! The layers carry what OCI images cannot (sockets, renamed directories) in records of our own.

mod export;
mod import;
mod portable;
mod write;

pub use export::export_template;
pub use import::{Template, import_template};
pub use portable::make_portable;

/// What the manifest says it is. The number counts formats.
const ARTIFACT: &str = "application/vnd.cofferdam.template.v1";
/// Before the number.
const ARTIFACT_FAMILY: &str = "application/vnd.cofferdam.template.";
/// The configuration's type.
const CONFIG: &str = "application/vnd.cofferdam.template.config.v1+json";
const LAYER: &str = "application/vnd.cofferdam.template.layer.v1.tar+zstd";
/// Notes with each layer: its name in a layer store, and the digest of its tar.
const LAYER_DIGEST: &str = "dev.cofferdam.layer-digest";
const DIFF_ID: &str = "dev.cofferdam.diff-id";
