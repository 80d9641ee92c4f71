//! `cofferdam template build`: builds a template on the server from a directory with a Dockerfile.
//! `template.toml` in the directory may set what a Dockerfile cannot: name, start and ready command, size.
//! Files that the server has are not uploaded again; an upload that breaks off is continued.

use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Args;
use cofferdam_client::{BuildHandle, BuildOptions, BuildPlan, BuildStep, Client};
use serde::Deserialize;
use template::{Dockerfile, Planned};
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
    let file =
        Dockerfile::parse(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
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
    let mut steps = Vec::new();
    for planned in file.steps {
        match planned {
            Planned::Step { kind, args } => {
                steps.push(BuildStep { kind: kind.to_owned(), args, files_hash: None });
            }
            Planned::Copy { from, to, owner, mode } => {
                for source in from {
                    let hash = upload(&client, &build, dir, &source, &ignored).await?;
                    let (owner, mode) = (owner.clone().unwrap_or_default(), mode.clone().unwrap_or_default());
                    let args = vec![source, to.clone(), owner, mode];
                    steps.push(BuildStep { kind: "COPY".to_owned(), args, files_hash: Some(hash) });
                }
            }
        }
    }
    let from_image = Some(file.from);
    let plan = BuildPlan {
        from_image,
        from_template: None,
        steps,
        start_cmd,
        ready_cmd,
        force: arguments.no_cache,
        engine: arguments.engine.clone().or(settings.engine),
    };
    client.start_build(&build, &plan).await?;
    follow(&client, &name, &build, arguments.verbose).await?;
    show::line(&build.template_id)
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

/// Uploads the files of a `COPY` unless the server has them, and returns their hash.
async fn upload(
    client: &Client,
    build: &BuildHandle,
    dir: &Path,
    source: &str,
    ignored: &IgnorePatterns,
) -> Result<String, Failure> {
    let packed = pack(dir, source, ignored)?;
    let link = client.files_link(build, &packed.hash).await?;
    if !link.present {
        let length = packed.archive.as_file().metadata()?.len();
        let open = |from| {
            let mut file = packed.archive.reopen()?;
            file.seek(SeekFrom::Start(from))?;
            Ok(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10))
        };
        client.send_files(&link, length, open).await?;
    }
    Ok(packed.hash)
}
