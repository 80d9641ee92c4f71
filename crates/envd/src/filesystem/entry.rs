//! Describes an entry of a directory.
//! Type and mode of a symbolic link are its target's; size, owner and the permission text are its own.

use std::fs::{FileType as Kind, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use buffa_types::google::protobuf::Timestamp;
use envd_api::filesystem::{EntryInfo, FileType};

use crate::filesystem::metadata;
use crate::users::Names;

/// Describes the entry at `path`.
pub fn describe(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let own = std::fs::symlink_metadata(path)?;
    let is_symlink = own.is_symlink();
    let target = if is_symlink { std::fs::metadata(path).ok() } else { Some(own.clone()) };
    let symlink_target = is_symlink.then(|| resolved(path).to_string_lossy().into_owned());
    Ok(EntryInfo {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        r#type: target.as_ref().map_or(FileType::FILE_TYPE_UNSPECIFIED, file_type).into(),
        path: path.to_string_lossy().into_owned(),
        size: size(&own),
        mode: target.map_or(0, |meta| meta.permissions().mode() & 0o777),
        permissions: permissions(&own),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: Timestamp {
            seconds: own.mtime(),
            nanos: i32::try_from(own.mtime_nsec()).unwrap_or(0),
            ..Default::default()
        }
        .into(),
        symlink_target,
        metadata: metadata::of(path).into_iter().collect(),
        is_symlink,
        ..Default::default()
    })
}

/// Returns the size. That of a directory is a block at least, as clients know it from other file systems: btrfs counts names only.
fn size(meta: &Metadata) -> i64 {
    let bytes = i64::try_from(meta.len()).unwrap_or(i64::MAX);
    if meta.is_dir() { bytes.max(4096) } else { bytes }
}

/// Returns the final target of a link, or the link itself if it is dangling.
fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn file_type(meta: &Metadata) -> FileType {
    if meta.is_file() {
        FileType::FILE_TYPE_FILE
    } else if meta.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// Type and permissions as letters, in the order clients know from Go: `dgtLDpSuc` then `rwxrwxrwx`.
fn permissions(meta: &Metadata) -> String {
    let mode = meta.permissions().mode();
    let mut text = kind_letters(meta.file_type()).to_owned();
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')] {
        if mode & bit != 0 {
            text.push(letter);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (at, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> at) != 0 { letter } else { '-' });
    }
    text
}

fn kind_letters(kind: Kind) -> &'static str {
    if kind.is_dir() {
        "d"
    } else if kind.is_symlink() {
        "L"
    } else if kind.is_block_device() {
        "D"
    } else if kind.is_char_device() {
        "Dc"
    } else if kind.is_fifo() {
        "p"
    } else if kind.is_socket() {
        "S"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn describes_files_links_and_broken_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("a path");
        let (file, link, broken) = (dir.join("f"), dir.join("l"), dir.join("b"));
        std::fs::write(&file, "hello").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("changed");
        symlink(&file, &link).expect("linked");
        symlink(dir.join("nowhere"), &broken).expect("linked");
        let names = Names::default();

        let entry = describe(&file, &names).expect("described");
        assert_eq!((entry.size, entry.mode, entry.permissions.as_str()), (5, 0o640, "-rw-r-----"));
        assert_eq!(entry.r#type, FileType::FILE_TYPE_FILE);
        assert_eq!((entry.is_symlink, entry.symlink_target), (false, None));
        assert!(describe(&dir, &names).expect("described").size >= 4096);

        let entry = describe(&link, &names).expect("described");
        assert_eq!((entry.mode, entry.permissions.as_str()), (0o640, "Lrwxrwxrwx"));
        assert_eq!((entry.is_symlink, entry.symlink_target.as_deref()), (true, file.to_str()));

        let entry = describe(&broken, &names).expect("described");
        assert_eq!((entry.mode, entry.symlink_target.as_deref()), (0, broken.to_str()));
        assert_eq!(entry.r#type, FileType::FILE_TYPE_UNSPECIFIED);
    }
}
