//! Installs servers: npm packages, PyPI packages and repositories, each in a directory of its own below `/opt/mcp-gateway`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::FlockOperation;
use serde_json::Value;
use tokio::process::Command;

use crate::catalogue;
use crate::error::Error;
use crate::launch::{Launch, Source, package};
use crate::limits::MAX_WORDS;
use crate::spawn::Words;

const HOME: &str = "/opt/mcp-gateway";
/// Written last, with what is installed.
const MARK: &str = ".installed";

/// `mcp-gateway pull`: installs servers by name.
///
/// # Errors
/// A name is unknown or has no package, or an installation fails.
pub(crate) async fn pull(names: &[String]) -> Result<(), Error> {
    let catalogue = catalogue::load()?;
    // All names first: a long installation should not end with a wrong name.
    let launches = names.iter().map(|name| package(&catalogue, name)).collect::<Result<Vec<_>, _>>()?;
    for launch in launches {
        println!("{}", launch.name);
        ensure(&launch).await?;
    }
    Ok(())
}

/// Installs a server if it is not, and returns what to execute.
///
/// # Errors
/// The installation fails, or has no program.
pub(crate) async fn ensure(launch: &Launch) -> Result<Words, Error> {
    let dir = directory(launch);
    let what = format!("{:?}", launch.source);
    let installed = || fs::read_to_string(dir.join(MARK)).is_ok_and(|mark| mark == what);
    let packaged = !matches!(launch.source, Source::Command(_) | Source::Remote { .. });
    if packaged && !installed() {
        fs::create_dir_all(&dir).map_err(Error::io(dir.display().to_string()))?;
        let lock = lock(&dir).await?;
        if !installed() {
            fs::remove_dir_all(&dir)
                .and_then(|()| fs::create_dir_all(&dir))
                .map_err(Error::io(dir.display().to_string()))?;
            install(launch, &dir).await?;
            fs::write(dir.join(MARK), &what).map_err(Error::io(dir.display().to_string()))?;
        }
        drop(lock);
    }
    program(launch, &dir)
}

fn directory(launch: &Launch) -> PathBuf {
    let name: String = launch.name.chars().map(|one| if one == '/' { '+' } else { one }).collect();
    Path::new(HOME).join(name)
}

/// Keeps another `mcp-gateway` from installing the same.
async fn lock(dir: &Path) -> Result<fs::File, Error> {
    let path = dir.with_extension("lock");
    let file = fs::File::create(&path).map_err(Error::io(path.display().to_string()))?;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(file)
}

async fn install(launch: &Launch, dir: &Path) -> Result<(), Error> {
    match &launch.source {
        Source::Npm { package, .. } => {
            let npm = ["install", "--no-audit", "--no-fund", "--omit=dev", "--loglevel=error", "--prefix"];
            run(launch, "npm install", Command::new("npm").args(npm).arg(dir).arg(package)).await
        }
        Source::Pypi { requirements, .. } => {
            run(launch, "uv venv", Command::new("uv").args(["venv", "--quiet", "--allow-existing"]).arg(dir))
                .await?;
            let mut uv = Command::new("uv");
            uv.args(["pip", "install", "--quiet", "--python"]).arg(dir.join("bin/python")).args(requirements);
            run(launch, "uv pip install", &mut uv).await
        }
        Source::Repository { owner, name, install, .. } => {
            let url = format!("https://github.com/{owner}/{name}");
            let clone = ["clone", "--quiet", "--depth=1", "--", &url];
            let repository = dir.join("repository");
            run(
                launch,
                "git clone",
                Command::new("git").args(clone).arg(&repository).env("GIT_TERMINAL_PROMPT", "0"),
            )
            .await?;
            let Some(install) = install else { return Ok(()) };
            run(
                launch,
                "the install command",
                Command::new("/bin/bash").args(["-lc", install]).current_dir(&repository),
            )
            .await
        }
        Source::Command(_) | Source::Remote { .. } => Ok(()),
    }
}

async fn run(launch: &Launch, step: &str, command: &mut Command) -> Result<(), Error> {
    let failed =
        |reason: String| Error::Install { server: launch.name.clone(), step: step.to_owned(), reason };
    command
        .envs(&launch.env)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let mut errors = child.stderr.take().ok_or_else(|| failed("it has no pipe".to_owned()))?;
    let mut last = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut errors, &mut buffer).await {
        last.extend_from_slice(&buffer[..count]);
        last.drain(..last.len().saturating_sub(MAX_WORDS));
    }
    let status = child.wait().await.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(format!("{status}: {}", String::from_utf8_lossy(&last).trim())))
}

fn program(launch: &Launch, dir: &Path) -> Result<Words, Error> {
    let none = |reason: String| Error::Start { server: launch.name.clone(), reason };
    let home = PathBuf::from("/root");
    let args = launch.args.clone();
    match &launch.source {
        Source::Npm { package, bin } => {
            let package = package.rsplit_once('@').map_or(package.as_str(), |(name, _)| name);
            let manifest = dir.join("node_modules").join(package).join("package.json");
            let manifest: Value = fs::read(&manifest)
                .ok()
                .and_then(|json| serde_json::from_slice(&json).ok())
                .unwrap_or_default();
            let bin = bin.clone().or_else(|| npm_program(package, &manifest["bin"]));
            let bin = bin.ok_or_else(|| none(format!("the package {package} has no program")))?;
            Ok(Words { program: dir.join("node_modules/.bin").join(bin), args, dir: home })
        }
        Source::Pypi { requirements, bin } => {
            let package =
                requirements.first().and_then(|one| one.split(['=', '[']).next()).unwrap_or_default();
            let bin = bin.clone().or_else(|| python_program(dir, package));
            let bin = bin.ok_or_else(|| none(format!("the package {package} has no program")))?;
            Ok(Words { program: dir.join("bin").join(bin), args, dir: home })
        }
        Source::Command(words) => {
            let (program, more) =
                words.split_first().ok_or_else(|| none("its command is empty".to_owned()))?;
            let args = more.iter().cloned().chain(args).collect();
            Ok(Words { program: program.into(), args, dir: home })
        }
        Source::Repository { run, .. } => {
            let args = vec!["-lc".to_owned(), run.clone()];
            Ok(Words { program: "/bin/bash".into(), args, dir: dir.join("repository") })
        }
        Source::Remote { .. } => Err(none("it is remote".to_owned())),
    }
}

/// The program of an npm package: its only one, the one with the package's name, or the first.
fn npm_program(package: &str, bin: &Value) -> Option<String> {
    let name = package.rsplit('/').next().unwrap_or(package);
    match bin {
        Value::String(_) => Some(name.to_owned()),
        Value::Object(all) => all.keys().find(|bin| *bin == name).or_else(|| all.keys().next()).cloned(),
        _ => None,
    }
}

/// The program of a PyPI package, found in the same way.
fn python_program(dir: &Path, package: &str) -> Option<String> {
    if dir.join("bin").join(package).exists() {
        return Some(package.to_owned());
    }
    let plain = |name: &str| name.to_lowercase().replace(['-', '.'], "_");
    let libraries =
        fs::read_dir(dir.join("lib")).ok()?.flatten().map(|entry| entry.path().join("site-packages"));
    let mut infos = libraries
        .flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten())
        .map(|entry| entry.path());
    let info = infos.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(".dist-info")
            .and_then(|name| name.split('-').next())
            .is_some_and(|name| plain(name) == plain(package))
    })?;
    first_script(&fs::read_to_string(info.join("entry_points.txt")).ok()?)
}

fn first_script(entry_points: &str) -> Option<String> {
    let (_, scripts) = entry_points.split_once("[console_scripts]")?;
    let lines = scripts
        .lines()
        .map(str::trim)
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim().to_owned()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_packages_are_found() {
        let bins = serde_json::json!({"other": "a.js", "server": "b.js"});
        assert_eq!(npm_program("@scope/server", &bins).as_deref(), Some("server"));
        assert_eq!(npm_program("@scope/name", &bins).as_deref(), Some("other"));
        assert_eq!(npm_program("@scope/name", &"a.js".into()).as_deref(), Some("name"));
        assert_eq!(npm_program("name", &Value::Null), None);
        assert_eq!(
            first_script("[x]\na=b\n[console_scripts]\n\nrun = a:b\nmore = c:d\n").as_deref(),
            Some("run")
        );
        assert_eq!(first_script("[console_scripts]\n[gui_scripts]\nrun = a:b"), None);
    }
}
