//! What can go wrong with images, registries and archives.
//! Texts about images reach whoever builds a template, so they name the image and what to do.
//! Nothing in them is secret: no credentials, no tokens.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use layers::LayerError;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Not an image's name.
    #[error("invalid image reference '{text}': {why}")]
    Reference {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The registry has the repository, but not this.
    #[error("image '{0}' not found: the image or tag does not exist in the registry")]
    ImageNotFound(String),
    /// The registry has no such repository.
    #[error("repository '{0}' not found: verify the image name is correct")]
    RepositoryNotFound(String),
    /// The registry wants credentials, or others.
    #[error("access denied to '{0}': authentication required or insufficient permissions")]
    Unauthorized(String),
    /// The registry knows who asks and says no.
    #[error("access denied to '{0}': you don't have permission to pull this image")]
    Denied(String),
    /// Any other refusal.
    #[error("failed to pull image '{image}': registry returned status code {status}")]
    Status {
        /// Which image.
        image: String,
        /// The HTTP status.
        status: u16,
    },
    /// The image is for other processors.
    #[error("image architecture {found:?} does not match expected {expected:?}")]
    Architecture {
        /// What the image is for.
        found: String,
        /// What this machine is.
        expected: String,
    },
    /// The image is for another operating system.
    #[error("image operating system {0:?} is not \"linux\"")]
    OperatingSystem(String),
    /// The registry cannot be reached from here.
    #[error(
        "registry {registry} cannot be reached: {why}; give the server a mirror of it \
         (serve --registry-mirror {registry}=https://…), or import an archive of the image (cofferdam template import)"
    )]
    Unreachable {
        /// Its host.
        registry: String,
        /// What happened.
        why: String,
    },
    /// The name leads to an address that users must not reach through the server.
    #[error(
        "{host} is at {address}, which is not a public address; the operator of this server can allow it as a mirror \
         (serve --registry-mirror) or as a network (serve --registry-allow-internal)"
    )]
    Internal {
        /// Whose address.
        host: String,
        /// The address.
        address: IpAddr,
    },
    /// A mirror's address cannot be used.
    #[error("{url:?} is no mirror: {why}; write https://host[:port][/prefix]")]
    Mirror {
        /// As configured.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// AWS gave no token.
    #[error("no access token from AWS for region {region:?}: {why}")]
    Aws {
        /// The region.
        region: String,
        /// What AWS said.
        why: String,
    },
    /// The registry speaks in a way that cannot be understood.
    #[error("registry {registry} gave an answer that cannot be used: {why}")]
    Protocol {
        /// Its host.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// Content is not what its name says.
    #[error("{what} is damaged: its digest is {found}, expected {expected}; fetch or export it again")]
    Damaged {
        /// What.
        what: String,
        /// What was wanted.
        expected: String,
        /// What came.
        found: String,
    },
    /// Content ended early or went on too long.
    #[error("{what} is damaged: it has {found} bytes, expected {expected}; fetch or export it again")]
    Length {
        /// What.
        what: String,
        /// What was announced, bytes.
        expected: u64,
        /// What came, bytes; at least.
        found: u64,
    },
    /// The image unpacks to more than it may.
    #[error(
        "the uncompressed Docker image size (at least {}) exceeds the maximum filesystem size ({}). Please reduce the \
         image's size, or use a smaller base image.",
        megabytes(*.size), megabytes(*.limit)
    )]
    TooLarge {
        /// What was counted when unpacking ended, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The image has more files than it may.
    #[error("the image has more than {0} files and directories. Please reduce their number.")]
    TooManyEntries(u64),
    /// A layer holds something that no proper image holds.
    #[error("the image's layer cannot be unpacked: entry {entry:?} {why}")]
    Entry {
        /// The entry's name, shortened.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a tar archive, or a broken one.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// An archive holds neither an image nor a template.
    #[error(
        "{} holds no image: it is neither an OCI layout nor made by `docker save`; make one with \
         `skopeo copy docker://IMAGE oci-archive:FILE` or `docker save -o FILE IMAGE`",
        .0.display()
    )]
    NoImage(PathBuf),
    /// An archive holds several images.
    #[error("{} holds several images: {}; name one of them", path.display(), names.join(", "))]
    SeveralImages {
        /// The archive.
        path: PathBuf,
        /// What they are called.
        names: Vec<String>,
    },
    /// An archive has images, but not this one.
    #[error("{} holds no image {name:?}; it holds {}", path.display(), names.join(", "))]
    NoSuchImage {
        /// The archive.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// An archive holds something else than a template.
    #[error("{} holds no template; make one with `cofferdam template export`", .0.display())]
    NoTemplate(PathBuf),
    /// A template of another time.
    #[error(
        "{} holds a template of format {found:?}, and this server reads {expected:?}; use a matching version of Cofferdam",
        path.display()
    )]
    TemplateVersion {
        /// The archive.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What is understood.
        expected: &'static str,
    },
    /// A layer cannot be told in an archive.
    #[error("layer {layer} cannot be exported: {entry:?} {why}")]
    NotPortable {
        /// The layer.
        layer: String,
        /// What in it.
        entry: String,
        /// Why not.
        why: &'static str,
    },
    /// The pull or import was given up.
    #[error("unpacking was cancelled")]
    Cancelled,
    /// A file or directory could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something failed in the layer store.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl OciError {
    pub(crate) fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::from_io(source.into()).unwrap_or_else(|source| Self::Io { path, source })
    }

    /// Through interfaces that know only I/O errors; [`OciError::from_io`] is the way back.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error of ours that travelled inside, if it is one.
    pub(crate) fn from_io(error: io::Error) -> Result<Self, io::Error> {
        error.downcast::<Self>()
    }

    pub(crate) fn malformed(what: impl Into<String>, why: &dyn fmt::Display) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }
}

fn megabytes(bytes: u64) -> String {
    // Rounded up, so that what exceeds a limit never reads like the limit.
    format!("{} MB", bytes.div_ceil(1 << 20))
}
