//! Builds that are requested with a Dockerfile as text. The Dockerfile is parsed at once, stored until the build is started, and then
//! built like any other. Files cannot be sent this way, so a `COPY` from the client is refused with the remedy.
//! Protocol: E2B's first generation, `POST /templates`, `POST /templates/{id}`, `POST /templates/{id}/builds/{buildID}`.

use std::io;
use std::sync::Arc;

use ids::{BuildId, TemplateId};
use serde::{Deserialize, Serialize};
use store::Team;
use template::steps::{RawStep, Step, StepError};
use template::{Dockerfile, Planned, StageBase};

use super::request::{NewBuild, PendingBuild};
use super::spec::{BuildRules, BuildSource, BuildSpec, StageSpec};
use super::{BuildError, Builds};

/// A Dockerfile to build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfilePlan {
    /// The text of the Dockerfile.
    pub dockerfile: String,
    /// Start command; by default the `CMD` or `ENTRYPOINT` of the Dockerfile.
    pub start_cmd: Option<String>,
    /// Ready command.
    pub ready_cmd: Option<String>,
}

impl DockerfilePlan {
    /// Parses the Dockerfile.
    fn spec(&self) -> Result<BuildSpec, BuildError> {
        let file =
            Dockerfile::parse(&self.dockerfile).map_err(|error| BuildError::Invalid(error.to_string()))?;
        let stages = file.stages.iter().map(|stage| {
            Ok(StageSpec {
                name: stage.name.clone(),
                source: source(&stage.from),
                steps: steps(&stage.steps)?,
            })
        });
        Ok(BuildSpec {
            stages: stages.collect::<Result<_, BuildError>>()?,
            engine: None,
            source: source(&file.from),
            registry: None,
            steps: steps(&file.steps)?,
            start_cmd: self.start_cmd.clone().or(file.start_cmd),
            ready_cmd: self.ready_cmd.clone(),
            force: false,
            rules: BuildRules::Current,
        })
    }
}

fn source(base: &StageBase) -> BuildSource {
    match base {
        StageBase::Image(image) => BuildSource::Image(image.clone()),
        StageBase::Stage(stage) => BuildSource::Stage(stage.clone()),
    }
}

fn steps(planned: &[Planned]) -> Result<Vec<Result<Step, StepError>>, BuildError> {
    let mut steps = Vec::new();
    for planned in planned {
        match planned {
            Planned::Step { kind, args } => {
                steps.push(Step::parse(&RawStep { kind, args, ..RawStep::default() }));
            }
            Planned::Copy { stage: None, from, to, .. } => {
                return Err(BuildError::Invalid(format!(
                    "COPY {} {to}: files cannot be sent with this call; build with `cofferdam template build <directory>`, or with an \
                     SDK's Template().fromDockerfile()",
                    from.join(" ")
                )));
            }
            Planned::Copy { stage, from, to, owner, mode } => steps.extend(from.iter().map(|source| {
                let args = Planned::copy_arguments(source, to, owner.as_deref(), mode.as_deref());
                let raw =
                    RawStep { kind: "COPY", args: &args, from_stage: stage.as_deref(), ..RawStep::default() };
                Step::parse(&raw)
            })),
        }
    }
    Ok(steps)
}

impl Builds {
    /// Requests a build of a Dockerfile.
    ///
    /// # Errors
    /// As [`Self::request`]; or the Dockerfile cannot be built.
    pub async fn request_planned(
        self: &Arc<Self>,
        team: &Team,
        wanted: &NewBuild,
        plan: &DockerfilePlan,
    ) -> Result<PendingBuild, BuildError> {
        let dirs = self.directories()?;
        plan.spec()?;
        let requested = self.request(team, wanted).await?;
        let path = dirs.plan(team.id, requested.build.id);
        let text = serde_json::to_vec(plan).expect("plain data serialises");
        let written = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(path.parent().expect("it is below a directory"))?;
            std::fs::write(path, text)
        });
        let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| not_kept(&error))?;
        Ok(requested)
    }

    /// Starts a build that was requested with a Dockerfile.
    ///
    /// # Errors
    /// As [`Self::start`]; or the build was requested without a Dockerfile.
    pub async fn start_planned(
        self: &Arc<Self>,
        team: &Arc<Team>,
        template: &TemplateId,
        id: BuildId,
    ) -> Result<(), BuildError> {
        let path = self.directories()?.plan(team.id, id);
        self.own_build(team, template, id)?;
        let plan = match tokio::fs::read(&path).await {
            Ok(text) => {
                serde_json::from_slice::<DockerfilePlan>(&text).map_err(|error| not_kept(&error.into()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BuildError::Invalid(format!(
                    "build '{id}' was asked for without a Dockerfile, or is started already; start it with POST \
                     /v2/templates/{template}/builds/{id}"
                )));
            }
            Err(error) => return Err(not_kept(&error)),
        };
        self.start(team, template, id, plan.spec()?).await?;
        let _ = tokio::fs::remove_file(path).await;
        Ok(())
    }
}

fn not_kept(error: &io::Error) -> BuildError {
    tracing::error!(%error, "failed to keep the Dockerfile of a build");
    BuildError::Dockerfile
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> DockerfilePlan {
        DockerfilePlan { dockerfile: text.to_owned(), ..DockerfilePlan::default() }
    }

    #[test]
    fn a_dockerfile_becomes_a_build_spec() {
        let plan = plan("FROM debian:12\nRUN echo a\nCMD serve\n");
        let spec = plan.spec().unwrap();
        assert_eq!(spec.source, BuildSource::Image("debian:12".to_owned()));
        let titles: Vec<String> = spec.steps.iter().map(|step| step.as_ref().unwrap().title()).collect();
        assert_eq!(titles, ["USER root", "WORKDIR /", "RUN echo a", "USER user", "WORKDIR /home/user"]);
        assert_eq!(spec.start_cmd.as_deref(), Some("serve"));
        let own = DockerfilePlan { start_cmd: Some("own".to_owned()), ..plan };
        assert_eq!(own.spec().unwrap().start_cmd.as_deref(), Some("own"));
    }

    #[test]
    fn steps_that_need_files_are_refused_with_the_remedy() {
        let refused = |text: &str| plan(text).spec().unwrap_err().to_string();
        let copy = refused("FROM a\nCOPY x y /z/\n");
        assert!(copy.starts_with("COPY x y /z/: files cannot be sent"), "{copy}");
        assert!(copy.contains("cofferdam template build"), "{copy}");
        assert!(refused("RUN true\n").contains("cannot be read"));
        let staged = plan("FROM a AS build\nRUN make\nFROM b\nCOPY --from=build /app /app\n").spec().unwrap();
        assert_eq!(staged.stages[0].source, BuildSource::Image("a".to_owned()));
        assert_eq!(staged.steps[2].as_ref().unwrap().title(), "COPY --from=build /app /app");
        assert!(plan("FROM a\nCOPY <<EOF /etc/motd\nhi\nEOF\n").spec().is_ok(), "it holds its file");
    }
}
