//! Where builds keep their files, below the configured directory.

use std::path::PathBuf;

use ids::{BuildId, TeamId};
use logs::LogStore;

#[derive(Debug, Clone)]
pub(crate) struct Directories {
    root: PathBuf,
}

impl Directories {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory of results of steps.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Returns the directory of uploaded archives.
    pub(crate) fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    /// Returns the path of a team's uploaded archive.
    pub(crate) fn file(&self, team: TeamId, hash: &str) -> PathBuf {
        self.files().join(team.to_string()).join(hash)
    }

    /// Returns the directory of Dockerfiles of builds that have not been started.
    pub(crate) fn plans(&self) -> PathBuf {
        self.root.join("plans")
    }

    /// Returns the path of the Dockerfile of a build that has not been started.
    pub(crate) fn plan(&self, team: TeamId, build: BuildId) -> PathBuf {
        self.plans().join(team.to_string()).join(build.to_string())
    }

    /// Returns the logs of builds that have ended.
    pub(crate) fn logs(&self) -> LogStore {
        LogStore::new(self.root.join("logs"))
    }
}
