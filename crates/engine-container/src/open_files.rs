//! What the frozen processes of a sandbox have open, as far as a capture must know it before it begins: how much is in deleted files,
//! which the memory image contains whole, how long the paths are, and that there is not too much of it to be captured and restored.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use engine::EngineError;
use rustix::process::{Resource, getrlimit};

use crate::refusal::refusal;

/// Maximum number of open descriptors of a captured sandbox. A process can make copies of descriptors that use almost none of its memory,
/// and CRIU looks at each of them.
const MAX_DESCRIPTORS: usize = 500_000;
/// Maximum number of deleted files and shared mappings of a captured sandbox. Each becomes a file of the image, and a restore holds all of them
/// open at once.
const MAX_FILES: usize = 25_000;
/// Descriptors that a restore needs for other things.
const OTHER_DESCRIPTORS: u64 = 1000;
/// What the kernel adds to the path of a file that has been deleted.
const DELETED: &[u8] = b" (deleted)";
/// Size of the units that the kernel counts a file's blocks in, bytes.
const BLOCK: u64 = 512;

/// Returns how many bytes the image of the processes in the control group at `group` takes besides their memory: for the files that they
/// have open or mapped and that have no name any more, shared memory without a name among them, and for the paths of everything open.
///
/// # Errors
/// [`EngineError::Uncapturable`] when the processes have too many descriptors or such files; the group cannot be read.
pub(crate) fn bytes_beside_memory(group: &Path) -> Result<u64, EngineError> {
    let processes = fs::read_to_string(group.join("cgroup.procs"));
    let processes = processes.map_err(EngineError::kernel("list the sandbox's processes"))?;
    let mut deleted = DeletedFiles::default();
    let mut descriptors = 0;
    let max_files = max_files();
    for pid in processes.lines() {
        let process = Path::new("/proc").join(pid);
        // A process that was killed meanwhile has nothing open.
        descriptors += deleted.add_descriptors(&process, MAX_DESCRIPTORS - descriptors).unwrap_or(0);
        if descriptors >= MAX_DESCRIPTORS {
            return Err(too_many(MAX_DESCRIPTORS, "files open"));
        }
        let is_in_process_dir = fs::read_link(process.join("cwd")).is_ok_and(|path| is_process_dir(&path));
        if deleted.has_process_dir || is_in_process_dir {
            let reason = "has the directory of a process in /proc open, or is in it";
            return Err(refusal(pid.parse().ok(), reason));
        }
        let _ = deleted.add_mappings(&process);
        if deleted.seen.len() > max_files {
            return Err(too_many(max_files, "shared memory mappings and deleted files in use"));
        }
    }
    Ok(deleted.bytes)
}

/// Returns [`MAX_FILES`], or less if this process, and so CRIU, may not open as many.
fn max_files() -> usize {
    let may_open = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(may_open.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(MAX_FILES).min(MAX_FILES)
}

/// Whether a path is that of a process's own directory, such as `/proc/7`. CRIU writes behind the end of that name and stores what follows, so
/// the directory is not found at the restore.
fn is_process_dir(path: &Path) -> bool {
    let name = path.as_os_str().as_bytes().strip_prefix(b"/proc/");
    name.is_some_and(|name| !name.is_empty() && name.iter().all(u8::is_ascii_digit))
}

fn too_many(max: usize, what: &str) -> EngineError {
    EngineError::Uncapturable(format!(
        "its programs have more than {max} {what}. End some of them, keep the files only (memory: false), or use a template of \
         the engine \"microvm\""
    ))
}

/// The deleted files that were found.
#[derive(Debug, Default)]
struct DeletedFiles {
    /// Device and inode of each.
    seen: HashSet<(u64, u64)>,
    bytes: u64,
    /// Whether a process has a directory such as `/proc/7` open.
    has_process_dir: bool,
}

impl DeletedFiles {
    /// Adds what a process has open; returns the number of its descriptors, at most `max`.
    fn add_descriptors(&mut self, process: &Path, max: usize) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(process.join("fd"))?.take(max) {
            let link = entry?.path();
            count += 1;
            let Ok(target) = fs::read_link(&link) else { continue };
            self.add_path(target.as_os_str().len());
            if target.as_os_str().as_bytes().ends_with(DELETED) {
                self.add(&link);
            }
            self.has_process_dir |= is_process_dir(&target);
        }
        Ok(count)
    }

    /// Adds what a process has mapped.
    fn add_mappings(&mut self, process: &Path) -> io::Result<()> {
        // Line by line: a process can have tens of thousands, each with a long path.
        let maps = BufReader::new(File::open(process.join("maps"))?);
        let mut inodes = HashSet::new();
        for line in maps.split(b'\n') {
            let line = line?;
            self.add_path(line.len());
            if !line.ends_with(DELETED) {
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            let mut fields = text.split_whitespace();
            let range = fields.next().and_then(|range| range.split_once('-'));
            let (Some((first, end)), Some(device), Some(inode)) = (range, fields.nth(2), fields.next())
            else {
                continue;
            };
            if inodes.insert((device.to_owned(), inode.to_owned())) {
                let [first, end] = [first, end].map(|address| address.trim_start_matches('0'));
                self.add(&process.join(format!("map_files/{first}-{end}")));
            }
        }
        Ok(())
    }

    /// Adds the path of something open or mapped, which the image contains for each of them.
    fn add_path(&mut self, length: usize) {
        self.bytes = self.bytes.saturating_add(length as u64);
    }

    /// Adds the file that a link of `/proc` refers to, once.
    fn add(&mut self, link: &Path) {
        let Ok(file) = fs::metadata(link) else { return };
        if file.is_file() && file.nlink() == 0 && self.seen.insert((file.dev(), file.ino())) {
            self.bytes = self.bytes.saturating_add(file.blocks() * BLOCK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_directory_of_a_process_itself_is_one() {
        assert!(is_process_dir(Path::new("/proc/7")));
        for path in ["/proc", "/proc/7/fd", "/proc/sys", "/proc/", "/tmp/proc/7", "/proc/7 (deleted)"] {
            assert!(!is_process_dir(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn deleted_files_are_counted_once_and_others_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        let _copy = file.try_clone().unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let mut named = fs::File::create(dir.path().join("named (deleted)")).unwrap();
        named.write_all(&[1; 4 << 20]).unwrap();
        named.sync_all().unwrap();
        let mut deleted = DeletedFiles::default();
        let process = Path::new("/proc/self");
        let count = deleted.add_descriptors(process, MAX_DESCRIPTORS).unwrap();
        assert!(count > 3);
        assert!((1 << 20..4 << 20).contains(&deleted.bytes), "{deleted:?}");
        let meta = file.metadata().unwrap();
        assert!(deleted.seen.contains(&(meta.dev(), meta.ino())), "{deleted:?}");
        assert_eq!(deleted.add_descriptors(process, 2).unwrap(), 2);
        deleted.add_mappings(process).unwrap();
    }
}
