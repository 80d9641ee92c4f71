//! Archives for `COPY`: named by a hash that the client computes, uploaded once per team and kept while they are used.
//! Clients upload without an API key, to a link that is signed for one team, one hash, one upload and half an hour. A partly
//! uploaded archive has another name (`uploads`). Archives are untrusted: they are only unpacked inside sandboxes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use catalog::CatalogError;
use futures::Stream;
use ids::{TeamId, TemplateId};
use store::Team;
use subtle::ConstantTimeEq;
use template::steps::is_files_hash;
use time::OffsetDateTime;

use super::spec::ArchiveFile;
use super::uploads::{self, LINK_LIFETIME, UploadError, UploadRange, UploadState};
use super::{BuildError, Builds};

/// Where a client uploads an archive.
#[derive(Debug, Clone)]
pub struct FilesLink {
    /// Whether the archive is here already.
    pub present: bool,
    /// Path and query of the link, signed.
    pub path: String,
}

/// What an upload link contains.
#[derive(Debug, Clone)]
pub struct UploadAddress {
    /// The team that uploads.
    pub team: TeamId,
    /// Hash that names the archive.
    pub hash: String,
    /// Id of the upload.
    pub upload: String,
    /// End of the link's life, seconds since 1970.
    pub expires: i64,
    /// Signature over all of the above.
    pub token: String,
}

impl Builds {
    /// Returns the link to which a team uploads an archive.
    ///
    /// # Errors
    /// The hash is malformed, or the template is not the team's.
    pub fn files_link(
        &self,
        team: &Team,
        template: &TemplateId,
        hash: &str,
    ) -> Result<FilesLink, BuildError> {
        let dirs = self.directories()?;
        if !is_files_hash(hash) {
            return Err(BuildError::Invalid("Invalid files hash".to_owned()));
        }
        if self.catalog.template(template).is_none_or(|known| known.team != Some(team.id)) {
            return Err(CatalogError::TemplateNotFound(template.to_string()).into());
        }
        let path = dirs.file(team.id, hash);
        let present = path.is_file();
        if present {
            touch(&path);
        }
        let expires = (OffsetDateTime::now_utc() + LINK_LIFETIME).unix_timestamp();
        let upload = ids::random_hex::<8>();
        let token = self.context.upload_token(team.id, hash, &upload, expires);
        let path = format!(
            "/cofferdam/v1/build-files/{}/{hash}?upload={upload}&expires={expires}&token={token}",
            team.id
        );
        Ok(FilesLink { present, path })
    }

    /// Returns how much of an archive has been uploaded.
    ///
    /// # Errors
    /// The link is not valid.
    pub async fn upload_state(&self, address: &UploadAddress) -> Result<UploadState, UploadError> {
        let path = self.check_upload(address)?;
        Ok(uploads::state(&path, &address.upload).await)
    }

    /// Receives an archive, or a range of it.
    ///
    /// # Errors
    /// See [`UploadError`]. What was received before the error is kept for as long as the link is valid.
    pub async fn receive_files<E>(
        &self,
        address: &UploadAddress,
        range: Option<UploadRange>,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<UploadState, UploadError> {
        let path = self.check_upload(address)?;
        uploads::receive(&self.uploads, &path, &address.upload, range, body).await
    }

    /// Checks a link's signature and age; returns the path of its archive.
    fn check_upload(&self, address: &UploadAddress) -> Result<PathBuf, UploadError> {
        let dirs = self.directories().map_err(|_| UploadError::Link)?;
        let UploadAddress { team, hash, upload, expires, token } = address;
        let signed = self.context.upload_token(*team, hash, upload, *expires);
        let is_fresh = OffsetDateTime::now_utc().unix_timestamp() < *expires;
        let is_ours = bool::from(signed.as_bytes().ct_eq(token.as_bytes()));
        if !is_ours || !is_fresh || !is_files_hash(hash) {
            return Err(UploadError::Link);
        }
        Ok(dirs.file(*team, hash))
    }

    /// Receives the archive of a whole template or image. It is removed with the returned value.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub async fn receive_archive<E>(
        &self,
        team: TeamId,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Arc<ArchiveFile>, UploadError> {
        let dirs = self.directories().map_err(|_| UploadError::Link)?;
        let path = dirs.file(team, &format!("archive-{}.new", ids::random_hex::<8>()));
        tokio::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).await?;
        let archive = ArchiveFile::new(path);
        uploads::receive_whole(archive.path(), body).await?;
        Ok(Arc::new(archive))
    }
}

/// Sets a file's modification time, from which its last use is counted.
fn touch(path: &Path) {
    let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}
