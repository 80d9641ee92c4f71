//! Errors of images, registries and archives. Users see their texts in logs of builds, so they name the image and the remedy, and
//! never contain credentials.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use layers::LayerError;

/// Errors of images, registries and archives.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The text is not an image reference.
    #[error("invalid image reference '{text}': {why}")]
    Reference {
        /// The text.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The registry has the repository, but not this image or tag.
    #[error("image '{0}' not found: the image or tag does not exist in the registry")]
    ImageNotFound(String),
    /// The registry does not have the repository.
    #[error("repository '{0}' not found: verify the image name is correct")]
    RepositoryNotFound(String),
    /// The registry requires credentials, or other ones.
    #[error("access denied to '{0}': authentication required or insufficient permissions")]
    Unauthorized(String),
    /// The credentials do not permit access.
    #[error("access denied to '{0}': you don't have permission to pull this image")]
    Denied(String),
    /// Another error status.
    #[error("failed to pull image '{image}': registry returned status code {status}")]
    Status {
        /// The image.
        image: String,
        /// The HTTP status.
        status: u16,
    },
    /// The image is for another architecture.
    #[error("image architecture {found:?} does not match expected {expected:?}")]
    Architecture {
        /// The image's architecture.
        found: String,
        /// The host's architecture.
        expected: String,
    },
    /// The image is for another operating system.
    #[error("image operating system {0:?} is not \"linux\"")]
    OperatingSystem(String),
    /// The registry cannot be reached.
    #[error(
        "registry {registry} cannot be reached: {why}; give the server a mirror of it \
         (serve --registry-mirror {registry}=https://…), or import an archive of the image (cofferdam template import)"
    )]
    Unreachable {
        /// Its host.
        registry: String,
        /// The error.
        why: String,
    },
    /// The host has no address, or only internal ones, which users must not reach through the server. They must not learn
    /// which names there are inside either, so the text is the same.
    #[error(
        "registry {registry} cannot be reached: its name has no public address; the operator of this server can allow it as a \
         mirror (serve --registry-mirror) or as a network (serve --registry-allow-internal), or import an archive of the image \
         (cofferdam template import)"
    )]
    NoAddress {
        /// Its host.
        registry: String,
        /// Whether it has an internal address.
        is_internal: bool,
    },
    /// The URL of a mirror is not valid.
    #[error("invalid URL of a mirror {url:?}: {why}; write https://host[:port][/prefix]")]
    Mirror {
        /// The URL.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// AWS refused a token.
    #[error("no access token from AWS for region {region:?}: {why}")]
    Aws {
        /// The region.
        region: String,
        /// The response of AWS.
        why: String,
    },
    /// The registry sent an invalid response.
    #[error("registry {registry} sent an invalid response: {why}")]
    Protocol {
        /// Its host.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// Content does not have the expected digest.
    #[error("{what} is damaged: its digest is {found}, expected {expected}; fetch or export it again")]
    Damaged {
        /// What.
        what: String,
        /// The expected digest.
        expected: String,
        /// The digest of the content.
        found: String,
    },
    /// Content does not have the expected length.
    #[error("{what} is damaged: it has {found} bytes, expected {expected}; fetch or export it again")]
    Length {
        /// What.
        what: String,
        /// The expected length, bytes.
        expected: u64,
        /// Minimum actual length, bytes.
        found: u64,
    },
    /// The uncompressed image exceeds the limit.
    #[error(
        "the uncompressed Docker image size (at least {}) exceeds the maximum filesystem size ({}). Please reduce the \
         image's size, or use a smaller base image.",
        megabytes(*.size), megabytes(*.limit)
    )]
    TooLarge {
        /// Size when unpacking was aborted, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The image has too many files.
    #[error("the image has more than {0} files and directories. Please reduce their number.")]
    TooManyEntries(u64),
    /// A layer has an invalid entry.
    #[error("the image's layer cannot be unpacked: entry {entry:?} {why}")]
    Entry {
        /// The entry's name, shortened.
        entry: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A file is malformed.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// An archive contains neither an image nor a template.
    #[error(
        "{} holds no image: it is neither an OCI layout nor made by `docker save`; make one with \
         `skopeo copy docker://IMAGE oci-archive:FILE` or `docker save -o FILE IMAGE`",
        .0.display()
    )]
    NoImage(PathBuf),
    /// An archive contains several images.
    #[error("{} contains several images: {}; name one of them", path.display(), names.join(", "))]
    SeveralImages {
        /// The archive.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// An archive does not contain the requested image.
    #[error("{} does not contain the image {name:?}; it contains {}", path.display(), names.join(", "))]
    NoSuchImage {
        /// The archive.
        path: PathBuf,
        /// The requested name.
        name: String,
        /// The names of its images.
        names: Vec<String>,
    },
    /// An archive contains something else than a template.
    #[error("{} does not contain a template; make one with `cofferdam template export`", .0.display())]
    NoTemplate(PathBuf),
    /// A template in another version of the format.
    #[error(
        "{} holds a template of format {found:?}, and this server reads {expected:?}; use a matching version of Cofferdam",
        path.display()
    )]
    TemplateVersion {
        /// The archive.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The supported version.
        expected: &'static str,
    },
    /// A layer cannot be represented in an archive.
    #[error("layer {layer} cannot be exported: {entry:?} {why}")]
    NotPortable {
        /// The layer.
        layer: String,
        /// The entry.
        entry: String,
        /// Why.
        why: &'static str,
    },
    /// The pull or import was cancelled.
    #[error("unpacking was cancelled")]
    Cancelled,
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer store failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl OciError {
    /// Whether the server itself failed. The text names files of the host and is for its operator.
    #[must_use]
    pub fn is_of_the_host(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Layer(_))
    }

    pub(crate) fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::from_io(source.into()).unwrap_or_else(|source| Self::Io { path, source })
    }

    /// Wraps the error, for interfaces that use I/O errors; [`OciError::from_io`] unwraps it.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// Unwraps an error that [`OciError::into_io`] wrapped; returns other errors unchanged.
    pub(crate) fn from_io(error: io::Error) -> Result<Self, io::Error> {
        error.downcast::<Self>()
    }

    pub(crate) fn malformed(what: impl Into<String>, why: &dyn fmt::Display) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }
}

fn megabytes(bytes: u64) -> String {
    // Rounded up, so that a size above a limit never looks like the limit.
    format!("{} MB", bytes.div_ceil(1 << 20))
}
