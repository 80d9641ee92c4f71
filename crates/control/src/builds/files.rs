//! Files for `COPY`: archives named by a hash of the client's choice, sent once per team and kept until nobody has used them for long.
//! Clients send them without their key, to an address that is signed for one team, one name, one upload and half an hour.
//! An archive is whole or not there: it arrives under another name (`uploads`). What is in it is only ever opened in a sandbox.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::Stream;
use ids::{TeamId, TemplateId};
use store::Team;
use template::steps::is_files_hash;
use time::OffsetDateTime;

use super::Directories;
use super::start::ArchiveFile;
use super::uploads::{self, GOOD_FOR, UploadError, UploadRange, UploadState};
use crate::{Control, ControlError, same_secret};

/// How long an unused archive is kept.
const UNUSED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a client is told before it sends an archive.
#[derive(Debug, Clone)]
pub struct FilesLink {
    /// Whether it is here already.
    pub present: bool,
    /// Where to send it: path and query, signed.
    pub path: String,
}

/// What the address says that a client was given.
#[derive(Debug, Clone)]
pub struct UploadAddress {
    /// Whose archive.
    pub team: TeamId,
    /// Its name.
    pub hash: String,
    /// Which upload of it.
    pub upload: String,
    /// Until when it is good, in seconds since 1970.
    pub expires: i64,
    /// The signature over all that.
    pub token: String,
}

impl Directories {
    /// Where a team's archive is.
    pub(super) fn file(&self, team: TeamId, hash: &str) -> PathBuf {
        self.files().join(team.to_string()).join(hash)
    }
}

impl Control {
    /// Where a team sends an archive.
    ///
    /// # Errors
    /// The hash is none, or the template is not the team's.
    pub fn files_link(
        &self,
        team: &Team,
        template: &TemplateId,
        hash: &str,
    ) -> Result<FilesLink, ControlError> {
        let dirs = self.build_dirs()?;
        if !is_files_hash(hash) {
            return Err(ControlError::Invalid("Invalid files hash".to_owned()));
        }
        if self.catalog.by_id(template).is_none_or(|known| known.team != Some(team.id)) {
            return Err(ControlError::TemplateNotFound(template.to_string()));
        }
        let path = dirs.file(team.id, hash);
        let present = path.is_file();
        if present {
            touch(&path);
        }
        let expires = (OffsetDateTime::now_utc() + GOOD_FOR).unix_timestamp();
        let upload = ids::random_hex::<8>();
        let token = self.tokens.upload(team.id, hash, &upload, expires);
        let path = format!(
            "/cofferdam/v1/build-files/{}/{hash}?upload={upload}&expires={expires}&token={token}",
            team.id
        );
        Ok(FilesLink { present, path })
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// The address is not good.
    pub async fn upload_state(&self, address: &UploadAddress) -> Result<UploadState, UploadError> {
        let path = self.check_upload(address)?;
        Ok(uploads::state(&path, &address.upload).await)
    }

    /// Takes an archive, or bytes of one.
    ///
    /// # Errors
    /// See [`UploadError`]; what came until then is kept for as long as the address is good.
    pub async fn receive_files<E>(
        &self,
        address: &UploadAddress,
        range: Option<UploadRange>,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<UploadState, UploadError> {
        let path = self.check_upload(address)?;
        uploads::receive(&self.uploads, &path, &address.upload, range, body).await
    }

    /// Where the archive of a good address is, or will be.
    fn check_upload(&self, address: &UploadAddress) -> Result<PathBuf, UploadError> {
        let dirs = self.build_dirs().map_err(|_| UploadError::Link)?;
        let UploadAddress { team, hash, upload, expires, token } = address;
        let signed = self.tokens.upload(*team, hash, upload, *expires);
        let is_fresh = OffsetDateTime::now_utc().unix_timestamp() < *expires;
        let is_ours = same_secret(signed.as_bytes(), token.as_bytes());
        if !is_ours || !is_fresh || !is_files_hash(hash) {
            return Err(UploadError::Link);
        }
        Ok(dirs.file(*team, hash))
    }

    /// Takes the archive of a whole template or image. It is removed with the answer.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub async fn receive_archive<E>(
        &self,
        team: TeamId,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Arc<ArchiveFile>, UploadError> {
        let dirs = self.build_dirs().map_err(|_| UploadError::Link)?;
        let path = dirs.file(team, &format!("archive-{}.new", ids::random_hex::<8>()));
        tokio::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).await?;
        let archive = ArchiveFile::new(path);
        uploads::receive_whole(archive.path(), body).await?;
        Ok(Arc::new(archive))
    }
}

/// Its age is counted from its last use.
fn touch(path: &Path) {
    let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes what nobody has used for long.
pub(super) fn forget(dirs: &Directories) {
    uploads::forget_parts(&dirs.files(), SystemTime::now());
    super::cache::forget(&dirs.files(), UNUSED_FOR);
}
