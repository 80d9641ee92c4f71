//! Container images as layers, from registries and archives; and templates as archives.
//! Whatever comes in is hostile: archives, registries, the addresses behind their names. Digests are checked before use.
//! Layers end up in the layer store; what a template does with an image is decided elsewhere.
#![forbid(unsafe_code)]

mod archive;
mod assemble;
mod budget;
mod compression;
mod digest;
mod error;
mod media;
mod pull;
mod reference;
mod registry;
mod tarball;
mod template;
mod unpack;

pub use archive::image::{ImportOptions, import_image};
pub use budget::Limits;
pub use digest::{Digest, NoDigest};
pub use error::OciError;
pub use media::host_architecture;
pub use pull::{Image, Phase, Progress, PullOptions, pull};
pub use reference::Reference;
pub use registry::{Credentials, Mirror, Registries};
pub use template::{Template, export_template, import_template, make_portable};
