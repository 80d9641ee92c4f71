//! Builds that are asked for with a Dockerfile as text: it is read at once, kept until the start, and built like any other.
//! Files cannot come this way, so what needs some is refused with the remedy.
//! Protocol: E2B's first generation, `POST /templates`, `POST /templates/{id}`, `POST /templates/{id}/builds/{buildID}`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ids::{BuildId, TeamId, TemplateId};
use serde::{Deserialize, Serialize};
use store::Team;
use template::steps::Step;
use template::{Dockerfile, Planned};

use super::Directories;
use super::register::{NewBuild, Requested};
use super::start::{BuildRules, BuildSource, BuildSpec};
use crate::{Control, ControlError};

/// What to build, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfilePlan {
    /// All of it.
    pub dockerfile: String,
    /// What runs in every sandbox; by default what the Dockerfile ends with.
    pub start_cmd: Option<String>,
    /// What succeeds once that serves.
    pub ready_cmd: Option<String>,
}

impl Directories {
    fn plan(&self, team: TeamId, build: BuildId) -> PathBuf {
        self.plans().join(team.to_string()).join(build.to_string())
    }
}

impl DockerfilePlan {
    fn spec(&self) -> Result<BuildSpec, ControlError> {
        let file =
            Dockerfile::parse(&self.dockerfile).map_err(|error| ControlError::Invalid(error.to_string()))?;
        let step = |planned: &Planned| match planned {
            Planned::Step { kind, args } => Ok(Step::parse(kind, args, None, false)),
            Planned::Copy { from, to, .. } => Err(ControlError::Invalid(format!(
                "COPY {} {to}: files cannot be sent with this call; build with `cofferdam template build <directory>`, or with an \
                 SDK's Template().fromDockerfile()",
                from.join(" ")
            ))),
        };
        let steps = file.steps.iter().map(step).collect::<Result<_, _>>()?;
        Ok(BuildSpec {
            engine: None,
            source: BuildSource::Image(file.from),
            registry: None,
            steps,
            start_cmd: self.start_cmd.clone().or(file.start_cmd),
            ready_cmd: self.ready_cmd.clone(),
            force: false,
            rules: BuildRules::Current,
        })
    }
}

impl Control {
    /// Asks for a build of a Dockerfile.
    ///
    /// # Errors
    /// As [`Self::request_build`]; or the Dockerfile cannot be built.
    pub async fn request_planned(
        self: &Arc<Self>,
        team: &Team,
        wanted: &NewBuild,
        plan: &DockerfilePlan,
    ) -> Result<Requested, ControlError> {
        let dirs = self.build_dirs()?;
        plan.spec()?;
        let requested = self.request_build(team, wanted).await?;
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

    /// Starts a build that was asked for with a Dockerfile.
    ///
    /// # Errors
    /// As [`Self::start_build`]; or it was asked for without one.
    pub async fn start_planned(
        self: &Arc<Self>,
        team: &Arc<Team>,
        template: &TemplateId,
        id: BuildId,
    ) -> Result<(), ControlError> {
        let path = self.build_dirs()?.plan(team.id, id);
        self.own_build(team, template, id)?;
        let plan = match tokio::fs::read(&path).await {
            Ok(text) => {
                serde_json::from_slice::<DockerfilePlan>(&text).map_err(|error| not_kept(&error.into()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ControlError::Invalid(format!(
                    "build '{id}' was asked for without a Dockerfile, or is started already; start it with POST \
                     /v2/templates/{template}/builds/{id}"
                )));
            }
            Err(error) => return Err(not_kept(&error)),
        };
        self.start_build(team, template, id, plan.spec()?).await?;
        let _ = tokio::fs::remove_file(path).await;
        Ok(())
    }
}

fn not_kept(error: &io::Error) -> ControlError {
    tracing::error!(%error, "the Dockerfile of a build could not be kept");
    ControlError::Engine("built: its Dockerfile could not be kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> DockerfilePlan {
        DockerfilePlan { dockerfile: text.to_owned(), ..DockerfilePlan::default() }
    }

    #[test]
    fn a_dockerfile_is_a_build() {
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
    fn what_needs_files_is_refused_with_the_remedy() {
        let refused = |text: &str| plan(text).spec().unwrap_err().to_string();
        let copy = refused("FROM a\nCOPY x y /z/\n");
        assert!(copy.starts_with("COPY x y /z/: files cannot be sent"), "{copy}");
        assert!(copy.contains("cofferdam template build"), "{copy}");
        assert!(refused("RUN true\n").contains("cannot be read"));
        assert!(plan("FROM a\nCOPY <<EOF /etc/motd\nhi\nEOF\n").spec().is_ok(), "it holds its file");
    }
}
