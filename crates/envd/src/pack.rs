//! `envd pack`: an archive of files of the sandbox, for `COPY --from` of builds. It runs inside a sandbox whose image may have no program
//! of its own. Owners are numbers. A link that the pattern names is followed, as in Docker; links below are kept.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use tar::{Builder, EntryType, Header};
use walk::Visitor;

/// Writes an archive of what `pattern`, a path from `/`, names to `out`. Names in it are paths without the first slash.
///
/// # Errors
/// Nothing has this name, the pattern is malformed, or a file cannot be read or written.
pub fn pack(pattern: &OsStr, out: impl Write) -> io::Result<()> {
    let pattern = Path::new("/").join(pattern);
    let mut archive = Builder::new(io::BufWriter::with_capacity(256 << 10, out));
    let found = named(&pattern)?;
    // As in Docker, a pattern may match nothing.
    let is_pattern = pattern.as_os_str().as_bytes().iter().any(|byte| b"*?[".contains(byte));
    if found.is_empty() && !is_pattern {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no file {}", pattern.display()),
        ));
    }
    for path in found {
        let name = path.strip_prefix("/").unwrap_or(&path).to_owned();
        let data = fs::metadata(&path)?;
        if data.is_dir() {
            let top = walk::open_dir(rustix::fs::CWD, fs::canonicalize(&path)?)?;
            let mount = walk::mount_id(&top, c"")?;
            let path = name.into_os_string().into_vec();
            walk::visit_mount(top, &mut Packer { archive: &mut archive, mount, path })?;
        } else if data.is_file() {
            let mut header = header(data.mode(), data.uid(), data.gid(), data.mtime());
            header.set_size(data.len());
            archive.append_data(&mut header, &name, File::open(&path)?.take(data.len()))?;
        }
    }
    archive.into_inner()?.flush()
}

/// Returns what a path or pattern names; a path that exists is no pattern.
fn named(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    if fs::symlink_metadata(pattern).is_ok() {
        return Ok(vec![pattern.to_owned()]);
    }
    let Some(text) = pattern.to_str() else { return Ok(Vec::new()) };
    let found = glob::glob(text).map_err(io::Error::other)?;
    found.map(|path| path.map_err(io::Error::from)).collect()
}

fn header(mode: u32, uid: u32, gid: u32, modified: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode & 0o7777);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(u64::try_from(modified).unwrap_or(0));
    header
}

struct Packer<'a, W: Write> {
    archive: &'a mut Builder<W>,
    /// The mount that the files are in; what is mounted there by the sandbox is not the image's.
    mount: u64,
    /// Path of the directory that is visited, without a slash at either end.
    path: Vec<u8>,
}

impl<W: Write> Packer<'_, W> {
    fn child(&self, name: &CStr) -> PathBuf {
        Path::new(OsStr::from_bytes(&self.path)).join(OsStr::from_bytes(name.to_bytes()))
    }
}

impl<W: Write> Visitor for Packer<'_, W> {
    fn file(&mut self, dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        if walk::mount_id(dir, name)? != self.mount {
            return Ok(());
        }
        let path = self.child(name);
        let mut header = header(stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let file =
                    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                header.set_size(size);
                self.archive.append_data(&mut header, path, File::from(file).take(size))
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                self.archive.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
            }
            // Sockets, devices and pipes are not copied.
            _ => Ok(()),
        }
    }

    fn enter(&mut self, name: &CStr) -> io::Result<()> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        Ok(())
    }

    /// A directory comes after its content, so that what is unpacked into it does not change its time.
    fn leave(&mut self, dir: &OwnedFd) -> io::Result<()> {
        // The root has no entry of its own.
        if self.path.is_empty() {
            return Ok(());
        }
        let stat = fstat(dir)?;
        let mut header = header(stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime);
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        self.archive.append_data(&mut header, Path::new(OsStr::from_bytes(&self.path)), io::empty())?;
        let above = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.path.truncate(above);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Names in an archive, with what they are.
    fn listed(pattern: &Path) -> io::Result<BTreeMap<String, String>> {
        let mut bytes = Vec::new();
        pack(pattern.as_os_str(), &mut bytes)?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        let prefix = pattern.ancestors().find(|path| path.join("tree").is_dir()).unwrap().to_owned();
        let mut found = BTreeMap::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name =
                Path::new("/").join(entry.path()?).strip_prefix(&prefix).unwrap().display().to_string();
            let mode = entry.header().mode()?;
            let what = match entry.header().entry_type() {
                EntryType::Directory => format!("directory {mode:o}"),
                EntryType::Symlink => format!("link {}", entry.link_name()?.unwrap().display()),
                _ => {
                    let mut text = String::new();
                    entry.read_to_string(&mut text)?;
                    format!("{text} {mode:o}")
                }
            };
            found.insert(name, what);
        }
        Ok(found)
    }

    #[test]
    fn trees_files_and_patterns_are_packed_with_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("tree/below")).unwrap();
        for (name, text) in [("tree/a.txt", "a"), ("tree/b.txt", "b"), ("tree/below/c", "c")] {
            fs::write(top.join(name), text).unwrap();
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
        fs::set_permissions(top.join("tree/below"), fs::Permissions::from_mode(0o2750)).unwrap();
        symlink("a.txt", top.join("tree/link")).unwrap();
        symlink("tree", top.join("elsewhere")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, top.join("tree/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        let tree = listed(&top.join("tree")).unwrap();
        assert_eq!(
            tree.keys().collect::<Vec<_>>(),
            ["tree", "tree/a.txt", "tree/b.txt", "tree/below", "tree/below/c", "tree/link"]
        );
        assert_eq!(tree["tree/below"], "directory 2750");
        assert_eq!(tree["tree/link"], "link a.txt");
        assert_eq!(tree["tree/a.txt"], "a 640");

        assert_eq!(listed(&top.join("tree/*.txt")).unwrap().len(), 2);
        assert_eq!(listed(&top.join("tree/link")).unwrap()["tree/link"], "a 640", "a named link is followed");
        assert_eq!(listed(&top.join("elsewhere")).unwrap()["elsewhere/below/c"], "c 640");
        assert!(listed(&top.join("tree/none*")).unwrap().is_empty());
        let missing = listed(&top.join("tree/none")).unwrap_err().to_string();
        assert!(missing.starts_with("there is no file /"), "{missing}");
    }
}
