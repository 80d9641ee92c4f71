//! Replaces files atomically: the content is written to a temporary file in the same directory, which is then renamed to the
//! target. Readers see the old content or the new one, never a part. On an error the target is unchanged and the temporary file
//! is removed; a process that is killed in between leaves a file `<name>.<random>.new`, see [`remove_stale`].
//!
//! Several threads or processes may replace the same file at once: the last rename wins.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

/// How temporary files' names end.
const SUFFIX: &str = ".new";

/// How a file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Permissions of the new file, reduced by the process's umask.
    pub mode: u32,
    /// Whether the file's content and its directory entry are on the disk when the call returns, so that they outlive a power
    /// failure.
    pub sync: bool,
}

impl Options {
    /// Any user may read the file; not synced.
    pub const DEFAULT: Self = Self { mode: 0o666, sync: false };
    /// Only the owner may read the file; not synced.
    pub const PRIVATE: Self = Self { mode: 0o600, sync: false };

    /// The same, with `sync` as given.
    #[must_use]
    pub const fn sync(self, sync: bool) -> Self {
        Self { sync, ..self }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Replaces the file at `path`, or creates it, with `content`. A symbolic link at `path` is itself replaced.
///
/// # Errors
/// The directory does not exist or cannot be written to, or the disk is full.
pub fn write(path: &Path, content: impl AsRef<[u8]>, options: Options) -> io::Result<()> {
    write_with(path, options, |file| file.write_all(content.as_ref()))
}

/// As [`write`], with `value` as JSON.
///
/// # Errors
/// As [`write`]; or the value cannot be serialised.
pub fn write_json(path: &Path, value: &impl Serialize, options: Options) -> io::Result<()> {
    write(path, serde_json::to_vec(value)?, options)
}

/// As [`write`], with what `fill` writes to the new file.
///
/// # Errors
/// As [`write`], and those of `fill`.
pub fn write_with<E: From<io::Error>>(
    path: &Path,
    options: Options,
    fill: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let dir = parent(path);
    let mut prefix = OsString::from(path.file_name().unwrap_or_default());
    prefix.push(".");
    let mut new = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(options.mode))
        .tempfile_in(dir)?;
    fill(new.as_file_mut())?;
    if options.sync {
        new.as_file().sync_all()?;
    }
    new.persist(path).map_err(|failure| failure.error)?;
    if options.sync {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Writes a directory's entries to the disk: after that, files that were created in it or renamed into it are found there
/// even after a power failure.
///
/// # Errors
/// The directory cannot be opened or written.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes temporary files that killed processes left over in `dir`. To be called when nothing is being replaced there.
///
/// # Errors
/// The directory cannot be read, or a file not be removed.
pub fn remove_stale(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_temporary = entry.file_name().as_encoded_bytes().ends_with(SUFFIX.as_bytes());
        if is_temporary && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The directory that a file is in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_created_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note.json");
        write(&path, "old", Options::DEFAULT).unwrap();
        let before = File::open(&path).unwrap();
        write_json(&path, &["new"], Options::DEFAULT.sync(true)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), r#"["new"]"#);
        assert_eq!(io::read_to_string(before).unwrap(), "old", "who has it open keeps what was there");
        assert_eq!(names(dir.path()), ["note.json"]);
    }

    #[test]
    fn the_mode_is_that_of_the_options_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write(&path, "a", Options::DEFAULT).unwrap();
        assert_eq!(mode() & 0o400, 0o400);
        write(&path, "b", Options::PRIVATE).unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn an_error_leaves_the_old_content_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        write(&path, "old", Options::DEFAULT).unwrap();
        let failed = write_with(&path, Options::DEFAULT, |file| {
            file.write_all(b"half of")?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["note"]);

        let occupied = dir.path().join("directory");
        fs::create_dir_all(occupied.join("full")).unwrap();
        assert!(write(&occupied, "x", Options::DEFAULT).is_err(), "a file replaces no directory");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn concurrent_writers_never_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        std::thread::scope(|scope| {
            for text in ["a", "b", "c"] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write(path, text.repeat(1000), Options::DEFAULT).unwrap();
                        let read = fs::read_to_string(path).unwrap();
                        assert_eq!(read, read[..1].repeat(1000));
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["note"]);
    }

    #[test]
    fn what_a_killed_process_left_over_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("note.a1b2c3.new"), "half").unwrap();
        fs::write(dir.path().join("note"), "whole").unwrap();
        fs::create_dir(dir.path().join("directory.new")).unwrap();
        remove_stale(dir.path()).unwrap();
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, ["directory.new", "note"]);
    }
}
