//! [`RestoreDir`]: a memory image prepared for one restore. Only the range of user ids differs from one restore to the next.
//! The image itself is never changed: each restore gets a directory of hard links to it, with the edited files in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

use engine_host::uids::RANGE_SIZE;

use super::entries::{HEADER, Record, visit_records, write_record};

/// Prefix of the names of restore directories, beside the image.
const PREFIX: &str = "restore-";

/// `userns_entry`.
#[derive(Clone, PartialEq, Message)]
struct UserNamespace {
    #[prost(message, repeated, tag = "1")]
    uids: Vec<Extent>,
    #[prost(message, repeated, tag = "2")]
    gids: Vec<Extent>,
}

/// `uid_gid_extent`.
#[derive(Clone, PartialEq, Message)]
struct Extent {
    #[prost(uint32, required, tag = "1")]
    first: u32,
    #[prost(uint32, required, tag = "2")]
    lower_first: u32,
    #[prost(uint32, required, tag = "3")]
    count: u32,
}

/// A directory of hard links to an image, for one restore. Removed when dropped.
#[derive(Debug)]
pub(super) struct RestoreDir(PathBuf);

impl RestoreDir {
    /// Prepares the image in the directory `images` for the range of ids that begins at `uid_base`.
    ///
    /// # Errors
    /// The image is damaged, or a file cannot be written.
    pub(super) fn new(images: &Path, uid_base: u32) -> io::Result<Self> {
        let dir = images.with_file_name(format!("{PREFIX}{}", ids::random_hex::<6>()));
        fs::create_dir(&dir)?;
        let restore_dir = Self(dir);
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            let target = restore_dir.0.join(entry.file_name());
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("userns-") {
                fs::write(target, shift_ids(&fs::read(entry.path())?, uid_base)?)?;
            } else if !name.ends_with(".log") {
                fs::hard_link(entry.path(), target)?;
            }
        }
        Ok(restore_dir)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RestoreDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the restore directories of the image in `images` that a killed server left over.
///
/// # Errors
/// A directory cannot be read or removed.
pub(crate) fn remove_restore_dirs(images: &Path) -> io::Result<()> {
    let Some(beside) = images.parent().filter(|dir| dir.is_dir()) else { return Ok(()) };
    for entry in fs::read_dir(beside)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Returns the image of a user namespace with the range of ids that begins at `uid_base`.
fn shift_ids(image: &[u8], uid_base: u32) -> io::Result<Vec<u8>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the image of the user namespace is damaged");
    let mut bodies = Vec::new();
    visit_records(image, |record| {
        let Record::Short(body) = record else { return Err(damaged()) };
        bodies.push(UserNamespace::decode(body)?);
        Ok(())
    })?;
    let [namespace] = &mut bodies[..] else { return Err(damaged()) };
    for extent in namespace.uids.iter_mut().chain(&mut namespace.gids) {
        if (extent.first, extent.count) != (0, RANGE_SIZE) {
            return Err(damaged());
        }
        extent.lower_first = uid_base;
    }
    let mut shifted = image[..HEADER].to_vec();
    write_record(&mut shifted, &namespace.encode_to_vec())?;
    Ok(shifted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(base: u32) -> Vec<u8> {
        let extent = Extent { first: 0, lower_first: base, count: RANGE_SIZE };
        let body = UserNamespace { uids: vec![extent.clone()], gids: vec![extent] }.encode_to_vec();
        [&[7u8; HEADER][..], &u32::try_from(body.len()).unwrap().to_le_bytes(), &body].concat()
    }

    #[test]
    fn only_the_range_of_ids_changes() {
        assert_eq!(shift_ids(&image(65_536), 1 << 28).unwrap(), image(1 << 28));
        assert!(shift_ids(&image(1)[..20], 1).is_err());
        assert!(shift_ids(b"", 1).is_err());
    }

    #[test]
    fn an_image_is_linked_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("memory");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("userns-9.img"), image(65_536)).unwrap();
        fs::write(images.join("pages-1.img"), "pages").unwrap();
        fs::write(images.join("dump.log"), "text").unwrap();
        let prepared = RestoreDir::new(&images, 131_072).unwrap();
        assert_eq!(fs::read(prepared.path().join("userns-9.img")).unwrap(), image(131_072));
        assert_eq!(fs::read(images.join("userns-9.img")).unwrap(), image(65_536));
        assert!(prepared.path().join("pages-1.img").exists() && !prepared.path().join("dump.log").exists());
        drop(prepared);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // As a server that is killed leaves it.
        std::mem::forget(RestoreDir::new(&images, 1).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        remove_restore_dirs(&images).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(images.join("pages-1.img").exists());
        remove_restore_dirs(Path::new("/nowhere/memory")).unwrap();
    }
}
