//! The start of a build that was asked for: what it is made from and of, checked as far as it can be before anything runs.
//! What only turns out later, such as an unknown template to start from, is the build's failure and not the call's.
//! Protocol: `POST /v2/templates/{id}/builds/{buildID}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ids::{BuildId, TemplateId};
use store::{Build, BuildStatus, Team};
use template::steps::{Step, StepError};

use super::worker::{Work, work};
use crate::{Control, ControlError};

/// Most steps of a build.
const MAX_STEPS: usize = 1000;

/// What a build is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildSource {
    /// A container image.
    Image(String),
    /// A template or snapshot of this server.
    Template(String),
    /// A template or an image in an archive that was sent; it is removed when the build has ended.
    Archive(Arc<ArchiveFile>),
}

/// An archive on this machine's disk, removed with the last handle to it.
#[derive(Debug, PartialEq, Eq)]
pub struct ArchiveFile(PathBuf);

impl ArchiveFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ArchiveFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How to prove to a registry who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// Any registry.
    Basic {
        /// Name.
        username: String,
        /// Its secret.
        password: String,
    },
    /// Amazon's, by a key that gets a password.
    Aws {
        /// Key.
        key_id: String,
        /// Its secret.
        secret: String,
        /// Where the registry is.
        region: String,
    },
    /// Google's, by a service account.
    Gcp {
        /// The account's JSON document.
        service_account: String,
    },
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// From what.
    pub source: BuildSource,
    /// For an image that not everybody may have.
    pub registry: Option<RegistryAuth>,
    /// In order; one that makes no sense is the build's failure when its turn comes.
    pub steps: Vec<Result<Step, StepError>>,
    /// What runs in every sandbox of the template.
    pub start_cmd: Option<String>,
    /// What succeeds once that serves.
    pub ready_cmd: Option<String>,
    /// Whether nothing of earlier builds is to be used.
    pub force: bool,
    /// By which of the contract's rules.
    pub rules: BuildRules,
    /// Name of the engine that runs the build and the template's sandboxes; without one that of what it is built from.
    pub engine: Option<String>,
}

/// Who runs a build's steps, and whom it ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildRules {
    /// Steps begin as the default user of what the build is made from, and the last `USER` and `WORKDIR` are the template's.
    #[default]
    Current,
    /// As clients older than 2.3.0 expect: on an image steps begin as root, and the template's user is always `user`.
    BeforeDefaultUser,
}

impl Control {
    /// Refuses an engine that is not run here.
    fn check_engine(&self, name: Option<&str>) -> Result<(), ControlError> {
        let Some(name) = name else { return Ok(()) };
        let known: Vec<&str> = self.engines().into_iter().map(|engine| engine.name).collect();
        if known.contains(&name) {
            return Ok(());
        }
        Err(ControlError::Invalid(format!(
            "engine {name:?} is not run by this server, only {}; its operator can see why with `cofferdam doctor`",
            known.join(", ")
        )))
    }

    /// Starts a build that waits.
    ///
    /// # Errors
    /// There is no such build, or it does not wait any more.
    pub async fn start_build(
        self: &Arc<Self>,
        team: &Arc<Team>,
        template: &TemplateId,
        id: BuildId,
        spec: BuildSpec,
    ) -> Result<(), ControlError> {
        let dirs = self.build_dirs()?;
        let layers = self.config.layers.clone().expect("builds have directories only where there are layers");
        if spec.steps.len() > MAX_STEPS {
            return Err(ControlError::Invalid(format!("a build has at most {MAX_STEPS} steps")));
        }
        self.check_engine(spec.engine.as_deref())?;
        let place = self.reserve_build(team)?;
        let _one_at_a_time = self.registering.lock().await;
        self.catalog.load(&*self.store).await?;
        let build = self.own_build(team, template, id)?;
        let not_waiting = || ControlError::Invalid("build is not in waiting state".to_owned());
        if build.status != BuildStatus::Waiting {
            return Err(not_waiting());
        }
        let job = self.jobs.begin(id, template).ok_or_else(not_waiting)?;
        let build = Build { status: BuildStatus::Building, ..(*build).clone() };
        let stored = self.store.put_build(&build).await.map_err(ControlError::from);
        let stored = match stored {
            Ok(_) => self.catalog.load(&*self.store).await.map_err(ControlError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            self.jobs.end(id);
            return Err(error);
        }
        self.jobs.cancel_others(template, Some(id));
        tracing::info!(template_id = %template, build_id = %id, team_id = %team.id, "build started");
        let task = Work {
            control: Arc::clone(self),
            team: Arc::clone(team),
            build,
            spec,
            job,
            dirs,
            layers,
            _place: place,
        };
        self.tasks.spawn(work(task));
        Ok(())
    }

    /// A build of a template of the team's.
    pub(super) fn own_build(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
    ) -> Result<Arc<Build>, ControlError> {
        let owned = self.catalog.by_id(template).is_some_and(|template| template.team == Some(team.id));
        let build = self.catalog.build(id).filter(|build| owned && build.template == *template);
        build.ok_or_else(|| ControlError::Invalid(format!("Build '{id}' not found")))
    }
}
