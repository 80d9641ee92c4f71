//! Archives that no proper tool makes, and what must become of them; here is the bench they are unpacked on.
//! Each is unpacked beside a file that must not change.
//! Needs root, for owners and device nodes.

mod limits;
mod marks;
mod names;
mod random;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::attributes::{is_opaque, xattrs_of};
use super::lower::open_dir;
use super::*;
use crate::Limits;

type Entries<'a> = &'a [(EntryType, &'a str, &'a str)];

/// Entries of kind, name, and content or target.
fn tar(entries: Entries<'_>) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, content) in entries {
        add(&mut tar, *kind, name.as_bytes(), content.as_bytes());
    }
    tar.into_inner().unwrap()
}

fn header(kind: EntryType, name: &[u8]) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000);
    header.set_size(0);
    header
}

fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], content: &[u8]) {
    let mut header = header(kind, name);
    let mut data = content;
    if matches!(kind, EntryType::Link | EntryType::Symlink) {
        header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        data = &[];
    }
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

struct Bench {
    dir: TempDir,
    warnings: Warnings,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Self { dir, warnings: Warnings::default(), limits: Limits { size: 1 << 20, entries: 1000 } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unpacks to the directory `name`, upon others.
    fn unpack_upon(&mut self, name: &str, tar: &[u8], below: &[&str]) -> Result<bool, OciError> {
        let budget = Budget::new(self.limits, Arc::default());
        let below: Vec<PathBuf> = below.iter().map(|name| self.path(name)).collect();
        let archive = crate::budget::Metered { inner: tar, budget: &budget };
        let root = self.path(name);
        let answer = unpack(archive, &root, &below, Source::Image, &budget, &mut self.warnings);
        assert_eq!(fs::read_to_string(self.path("outside/secret")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
        answer
    }

    fn unpack(&mut self, entries: Entries<'_>) -> Result<bool, OciError> {
        self.unpack_upon("root", &tar(entries), &[])
    }

    fn is_opaque(&self, name: &str) -> bool {
        is_opaque(&open_dir(CWD, self.path(name)).unwrap()).unwrap()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let metadata = fs::symlink_metadata(self.path(name)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }
}

use EntryType::{Directory as D, Link as L, Regular as F, Symlink as S};
