//! Starts a requested build, after the checks that need no sandbox. Errors that are found only later, such as an unknown template to
//! start from, fail the build and not the call.
//! Protocol: `POST /v2/templates/{id}/builds/{buildID}`.

use std::sync::Arc;

use ids::{BuildId, TemplateId};
use store::{Build, BuildStatus, Team};

use super::spec::BuildSpec;
use super::task::BuildTask;
use super::{BuildError, Builds, worker};

/// Maximum number of steps of a build, those of all stages together.
const MAX_STEPS: usize = 1000;

impl Builds {
    /// Starts a waiting build.
    ///
    /// # Errors
    /// There is no such build, it is not waiting, the engine is not run here, or the team has too many builds in progress.
    pub async fn start(
        self: &Arc<Self>,
        team: &Arc<Team>,
        template: &TemplateId,
        id: BuildId,
        spec: BuildSpec,
    ) -> Result<(), BuildError> {
        let (dirs, layers) = self.workspace()?;
        let steps = spec.stages.iter().map(|stage| stage.steps.len()).sum::<usize>() + spec.steps.len();
        if steps > MAX_STEPS || spec.stages.len() > MAX_STEPS {
            return Err(BuildError::Invalid(format!("a build has at most {MAX_STEPS} steps")));
        }
        self.check_engine(spec.engine.as_deref())?;
        let reservation = self.reserve(team)?;
        let _change = self.catalog.begin_change().await?;
        let build = self.own_build(team, template, id)?;
        let not_waiting = || BuildError::Invalid("build is not in waiting state".to_owned());
        if build.status != BuildStatus::Waiting {
            return Err(not_waiting());
        }
        let job = self.jobs.begin(id, template).ok_or_else(not_waiting)?;
        let record = Build { status: BuildStatus::Building, ..(*build).clone() };
        if let Err(error) = self.catalog.put_build(&record).await {
            self.jobs.end(id);
            return Err(error.into());
        }
        self.jobs.cancel_others(template, Some(id));
        tracing::info!(template_id = %template, build_id = %id, team_id = %team.id, "build started");
        self.tasks.spawn(worker::run(BuildTask {
            builds: Arc::clone(self),
            team: Arc::clone(team),
            record,
            spec,
            job,
            dirs,
            layers,
            _reservation: reservation,
        }));
        Ok(())
    }

    /// Checks that this server runs the engine of this name.
    fn check_engine(&self, name: Option<&str>) -> Result<(), BuildError> {
        let Some(name) = name else { return Ok(()) };
        let known: Vec<&str> = self.context.engines().into_iter().map(|engine| engine.name).collect();
        if known.contains(&name) {
            return Ok(());
        }
        Err(BuildError::Invalid(format!(
            "engine {name:?} is not run by this server, only {}; its operator can see why with `cofferdam doctor`",
            known.join(", ")
        )))
    }

    /// Returns a build of a team's own template.
    pub(crate) fn own_build(
        &self,
        team: &Team,
        template: &TemplateId,
        id: BuildId,
    ) -> Result<Arc<Build>, BuildError> {
        let build = self.catalog.own_build(team, template, id);
        build.ok_or_else(|| BuildError::Invalid(format!("Build '{id}' not found")))
    }
}
