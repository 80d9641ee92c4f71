//! Packs the files that a `COPY` names into a temporary archive.
//! The archive's name is a hash of paths, modes, contents and link targets. Times are not hashed, so that a fresh checkout has the same.
//! Symbolic links are packed as links and never followed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use globset::GlobBuilder;
use sha2::{Digest, Sha256};

use super::ignored::IgnorePatterns;
use crate::failure::Failure;

/// An archive of files for one `COPY`.
#[derive(Debug)]
pub(super) struct PackedFiles {
    /// SHA-256 in hexadecimal digits.
    pub(super) hash: String,
    /// The file, removed when this is dropped.
    pub(super) archive: tempfile::NamedTempFile,
}

/// Packs the files of the directory `context` that `source`, a path or pattern, matches; none if a pattern matches nothing, which Docker
/// allows.
///
/// # Errors
/// A path without a file, `source` leaves the directory, or a file cannot be read.
pub(super) fn pack(
    context: &Path,
    source: &str,
    ignored: &IgnorePatterns,
) -> Result<Option<PackedFiles>, Failure> {
    let relative = relative_path(source)?;
    let mut paths = Vec::new();
    for found in matches(context, &relative)? {
        collect(context, &found, ignored, &mut paths)?;
    }
    if paths.is_empty() && source.contains(['*', '?', '[']) {
        return Ok(None);
    }
    if paths.is_empty() {
        return Err(Failure::new(format!(
            "COPY {source}: there is no such file in {} (or .dockerignore leaves it out)",
            context.display()
        )));
    }
    paths.sort();
    paths.dedup();
    let archive = tempfile::NamedTempFile::new()?;
    let mut hash = Sha256::new();
    let mut tar = tar::Builder::new(GzEncoder::new(archive.as_file(), Compression::fast()));
    tar.follow_symlinks(false);
    for path in &paths {
        add(context, path, &mut hash, &mut tar)?;
    }
    tar.into_inner()?.finish()?.flush()?;
    Ok(Some(PackedFiles { hash: hex::encode(hash.finalize()), archive }))
}

/// Returns a source as a path relative to the context.
fn relative_path(source: &str) -> Result<PathBuf, Failure> {
    let mut path = PathBuf::new();
    for part in Path::new(source).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::new(format!(
                    "COPY {source}: only files in the build's directory can be copied"
                )));
            }
        }
    }
    Ok(path)
}

fn matches(context: &Path, relative: &Path) -> Result<Vec<PathBuf>, Failure> {
    if context.join(relative).symlink_metadata().is_ok() {
        return Ok(vec![relative.to_owned()]);
    }
    let text = relative.to_string_lossy();
    let glob = GlobBuilder::new(&text).literal_separator(true).build();
    let glob = glob.map_err(|error| Failure::new(format!("COPY {text}: {error}")))?.compile_matcher();
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(context.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if glob.is_match(&path) {
                found.push(path);
            } else if entry.file_type()?.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(found)
}

/// Adds a path, and everything below it, that is not ignored.
fn collect(
    context: &Path,
    path: &Path,
    ignored: &IgnorePatterns,
    paths: &mut Vec<PathBuf>,
) -> Result<(), Failure> {
    let is_ignored = path != Path::new("") && ignored.ignores(path);
    let is_dir = context.join(path).symlink_metadata()?.is_dir();
    if is_ignored && !(is_dir && ignored.has_exceptions()) {
        return Ok(());
    }
    if !is_ignored && path != Path::new("") {
        paths.push(path.to_owned());
    }
    if is_dir {
        for entry in fs::read_dir(context.join(path))? {
            collect(context, &path.join(entry?.file_name()), ignored, paths)?;
        }
    }
    Ok(())
}

fn add<W: Write>(
    context: &Path,
    path: &Path,
    hash: &mut Sha256,
    tar: &mut tar::Builder<W>,
) -> Result<(), Failure> {
    let whole = context.join(path);
    let data = whole.symlink_metadata()?;
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(path.as_os_str().as_bytes());
    let kind = if data.is_dir() {
        "d"
    } else if data.is_symlink() {
        "l"
    } else {
        "f"
    };
    if !(data.is_dir() || data.is_symlink() || data.is_file()) {
        return Err(Failure::new(format!("{}: neither a file nor a directory nor a link", whole.display())));
    }
    field(kind.as_bytes());
    field(&(data.permissions().mode() & 0o777).to_le_bytes());
    if data.is_symlink() {
        field(fs::read_link(&whole)?.as_os_str().as_bytes());
    } else if data.is_file() {
        hash.update(data.len().to_le_bytes());
        io::copy(&mut File::open(&whole)?, &mut HashWriter(hash))?;
    }
    Ok(tar.append_path_with_name(&whole, path)?)
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(packed: &PackedFiles) -> Vec<String> {
        let file = flate2::read::GzDecoder::new(packed.archive.reopen().unwrap());
        let mut tar = tar::Archive::new(file);
        let paths = tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        paths.map(|path| path.trim_end_matches('/').to_owned()).collect()
    }

    #[test]
    fn what_is_named_is_packed_and_the_hash_knows_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("app/sub")).unwrap();
        fs::write(at("app/a.txt"), "a").unwrap();
        fs::write(at("app/sub/b.log"), "b").unwrap();
        fs::write(at("c.txt"), "c").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("app/link")).unwrap();
        fs::write(at(".dockerignore"), "**/*.log\n").unwrap();
        let ignored = IgnorePatterns::load(dir.path()).unwrap();
        let found = |source: &str| pack(dir.path(), source, &ignored);
        let pack = |source: &str| found(source).map(Option::unwrap);
        assert!(found("*.md").unwrap().is_none(), "a pattern may match nothing");
        let app = pack("app").unwrap();
        assert_eq!(names(&app), ["app", "app/a.txt", "app/link", "app/sub"]);
        assert_eq!(names(&pack("*.txt").unwrap()), ["c.txt"]);
        assert_eq!(names(&pack("./app/*.txt").unwrap()), ["app/a.txt"]);
        assert!(names(&pack(".").unwrap()).contains(&"c.txt".to_owned()));
        assert_eq!(pack("app").unwrap().hash, app.hash);
        fs::write(at("app/a.txt"), "b").unwrap();
        assert_ne!(pack("app").unwrap().hash, app.hash);
        assert!(pack("../x").is_err());
        assert!(pack("none").is_err() && pack("app/sub/b.log").is_err());
    }
}
