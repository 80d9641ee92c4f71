//! What clients ask to be built: source, steps, commands, and by which rules.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use template::steps::{Step, StepError};

/// What a build starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildSource {
    /// A container image.
    Image(String),
    /// A template or snapshot of this server.
    Template(String),
    /// An earlier stage of the build, by name.
    Stage(String),
    /// An uploaded archive of a template or an image, which is removed when the build has ended.
    Archive(Arc<ArchiveFile>),
}

/// An archive on the host's disk, removed with the last reference to it.
#[derive(Debug, PartialEq, Eq)]
pub struct ArchiveFile(PathBuf);

impl ArchiveFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ArchiveFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Credentials for an image registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// For any registry.
    Basic {
        /// User name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// For Amazon ECR: an access key that is exchanged for a password.
    Aws {
        /// Id of the access key.
        key_id: String,
        /// Secret of the access key.
        secret: String,
        /// Region of the registry.
        region: String,
    },
    /// For Google's registries.
    Gcp {
        /// JSON document of the service account.
        service_account: String,
    },
}

/// A stage before the last, which later stages start from or copy files from.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// Its name.
    pub name: String,
    /// What it starts from.
    pub source: BuildSource,
    /// Steps in order; without any it is only copied from, and its image needs no shell.
    pub steps: Vec<Result<Step, StepError>>,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// Stages, in order.
    pub stages: Vec<StageSpec>,
    /// What the build starts from.
    pub source: BuildSource,
    /// Credentials for a private image.
    pub registry: Option<RegistryAuth>,
    /// Steps in order. A malformed one fails the build when its turn comes.
    pub steps: Vec<Result<Step, StepError>>,
    /// Command that runs in every sandbox of the template.
    pub start_cmd: Option<String>,
    /// Command that succeeds once the start command is ready.
    pub ready_cmd: Option<String>,
    /// Whether to ignore cached results.
    pub force: bool,
    /// Rules of the wire contract's version.
    pub rules: BuildRules,
    /// Engine of the build and of the template's sandboxes; by default the engine of the template that the build starts from.
    pub engine: Option<String>,
}

/// Which user runs a build's steps, and which becomes the template's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildRules {
    /// Steps begin as the default user of what the build starts from; the last `USER` and `WORKDIR` are the template's.
    #[default]
    Current,
    /// As clients older than 2.3.0 expect: on an image steps begin as root, and the template's user is always `user`.
    BeforeDefaultUser,
}
