//! `cofferdam template build`: builds a template on the server from a directory with a Dockerfile.
//! `template.toml` in the directory may set what a Dockerfile cannot: name, start and ready command, size.
//! Files that the server has are not uploaded again; an upload that breaks off is continued.

use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Args;
use cofferdam_client::{BuildHandle, BuildOptions, BuildPlan, BuildStage, BuildStep, Client};
use serde::Deserialize;
use template::{Dockerfile, Planned, StageBase};
use tokio_util::io::ReaderStream;

use super::context::pack;
use super::follow::follow;
use super::ignored::IgnorePatterns;
use crate::access::team_client;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// Arguments of `template build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArguments {
    #[command(flatten)]
    data: DataDir,
    /// Directory with the Dockerfile and the files it copies.
    dir: PathBuf,
    /// Name of the template, optionally with a tag (`name:tag`). [default: that of template.toml]
    #[arg(long)]
    name: Option<String>,
    /// Dockerfile, relative to the directory. [default: Dockerfile or e2b.Dockerfile]
    #[arg(long, value_name = "FILE")]
    dockerfile: Option<PathBuf>,
    /// Value of an `ARG` of the Dockerfile. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    build_arg: Vec<(String, String)>,
    /// Further tag of the build. May be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Command that runs in every sandbox. [default: CMD or ENTRYPOINT of the Dockerfile]
    #[arg(long, value_name = "COMMAND")]
    start_cmd: Option<String>,
    /// Command that succeeds when the start command is ready.
    #[arg(long, value_name = "COMMAND")]
    ready_cmd: Option<String>,
    /// Number of processors of its sandboxes.
    #[arg(long, value_name = "COUNT")]
    cpu_count: Option<u32>,
    /// Memory of its sandboxes, MiB.
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u32>,
    /// Engine of the build and the template's sandboxes: `container` or `microvm`. [default: that of the template it is built from, or
    /// the server's]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Run all steps again, without cached ones.
    #[arg(long)]
    no_cache: bool,
    /// Show every line of the build's log.
    #[arg(long, short)]
    verbose: bool,
}

/// Content of `template.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TemplateSettings {
    name: Option<String>,
    dockerfile: Option<PathBuf>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
    cpu_count: Option<u32>,
    memory_mb: Option<u32>,
    engine: Option<String>,
}

impl TemplateSettings {
    fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join("template.toml");
        match fs::read_to_string(&path) {
            Ok(text) => {
                toml::from_str(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
        }
    }
}

/// Requests, starts and follows a build, and prints the template's id.
pub(super) async fn run(arguments: &BuildArguments) -> Result<(), Failure> {
    let dir = &arguments.dir;
    let settings = TemplateSettings::load(dir)?;
    let name = arguments.name.clone().or(settings.name).ok_or_else(|| {
        Failure::new("the template needs a name: give one with --name, or in template.toml")
    })?;
    let path = dockerfile(dir, arguments.dockerfile.clone().or(settings.dockerfile))?;
    let text =
        fs::read_to_string(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let values = arguments.build_arg.iter().cloned().collect();
    let file = Dockerfile::parse_with(&text, &values)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    file.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let start_cmd = arguments.start_cmd.clone().or(settings.start_cmd).or(file.start_cmd);
    let ready_cmd = arguments.ready_cmd.clone().or(settings.ready_cmd);

    let client = team_client(&arguments.data)?;
    let options = BuildOptions {
        name: name.clone(),
        tags: arguments.tag.clone(),
        cpu_count: arguments.cpu_count.or(settings.cpu_count),
        memory_mib: arguments.memory_mb.or(settings.memory_mb),
    };
    let build = client.request_build(&options).await?;
    let ignored = IgnorePatterns::load(dir)?;
    let files = BuildFiles { client: &client, build: &build, dir, ignored: &ignored };
    let mut stages = Vec::new();
    for stage in file.stages {
        let (from_image, from_stage) = split(stage.from);
        let steps = files.steps(stage.steps).await?;
        stages.push(BuildStage { name: stage.name, from_image, from_stage, steps });
    }
    let (from_image, from_stage) = split(file.from);
    let plan = BuildPlan {
        from_image,
        from_template: None,
        from_stage,
        stages,
        steps: files.steps(file.steps).await?,
        start_cmd,
        ready_cmd,
        force: arguments.no_cache,
        engine: arguments.engine.clone().or(settings.engine),
    };
    client.start_build(&build, &plan).await?;
    follow(&client, &name, &build, arguments.verbose).await?;
    show::line(&build.template_id)
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write NAME=VALUE".to_owned())
}

fn dockerfile(dir: &Path, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(dir.join(named));
    }
    let usual = ["Dockerfile", "e2b.Dockerfile"].map(|name| dir.join(name));
    usual.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Failure::new(format!("{} has no Dockerfile; name another file with --dockerfile", dir.display()))
    })
}

/// Returns an image or a stage.
fn split(base: StageBase) -> (Option<String>, Option<String>) {
    match base {
        StageBase::Image(image) => (Some(image), None),
        StageBase::Stage(stage) => (None, Some(stage)),
    }
}

/// Where the files of `COPY` are, and for which build.
struct BuildFiles<'a> {
    client: &'a Client,
    build: &'a BuildHandle,
    dir: &'a Path,
    ignored: &'a IgnorePatterns,
}

impl BuildFiles<'_> {
    /// Returns the steps as the server takes them, and uploads their files.
    async fn steps(&self, planned: Vec<Planned>) -> Result<Vec<BuildStep>, Failure> {
        let mut steps = Vec::new();
        for planned in planned {
            match planned {
                Planned::Step { kind, args } => {
                    steps.push(BuildStep { kind: kind.to_owned(), args, ..BuildStep::default() });
                }
                Planned::Copy { stage, from, to, owner, mode } => {
                    for source in from {
                        let files_hash = match stage {
                            Some(_) => None,
                            None => match self.upload(&source).await? {
                                Some(hash) => Some(hash),
                                None => continue,
                            },
                        };
                        let args = Planned::copy_arguments(&source, &to, owner.as_deref(), mode.as_deref());
                        let (kind, from_stage) = ("COPY".to_owned(), stage.clone());
                        steps.push(BuildStep { kind, args, files_hash, from_stage });
                    }
                }
            }
        }
        Ok(steps)
    }

    /// Uploads the files of a `COPY` unless the server has them, and returns their hash; none if there are no files.
    async fn upload(&self, source: &str) -> Result<Option<String>, Failure> {
        let Some(packed) = pack(self.dir, source, self.ignored)? else { return Ok(None) };
        let link = self.client.files_link(self.build, &packed.hash).await?;
        if !link.present {
            let length = packed.archive.as_file().metadata()?.len();
            let open = |from| {
                let mut file = packed.archive.reopen()?;
                file.seek(SeekFrom::Start(from))?;
                Ok(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10))
            };
            self.client.send_files(&link, length, open).await?;
        }
        Ok(Some(packed.hash))
    }
}
