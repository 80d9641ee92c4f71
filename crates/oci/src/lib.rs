//! Container images from registries ([`pull`]) and archives ([`import_image`]) as layers, and templates as archives
//! ([`export_template`], [`import_template`]).
//! Archives, registries and the addresses behind their names are untrusted. Digests are verified before content is used.
//! Layers are added to the layer store; `control` makes templates of them.
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
