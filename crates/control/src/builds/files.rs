//! Files for `COPY`: archives named by a hash of the client's choice, sent once per team and kept until nobody has used them for long.
//! Clients send them without their key, to an address that is signed for one team, one name and half an hour.
//! An archive is whole or not there: it arrives under another name. What is in it is only ever opened in a sandbox.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use ids::{TeamId, TemplateId};
use store::Team;
use template::steps::is_files_hash;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;

use super::Folders;
use super::start::ArchiveFile;
use crate::{Control, ControlError, same_secret};

/// How long an address is good.
const GOOD_FOR: Duration = Duration::from_secs(30 * 60);
/// Largest archive, bytes.
const LARGEST: u64 = 16 << 30;
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

/// Why an archive was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The address was not signed by this server, or too long ago.
    #[error("the upload link is not valid or has expired; ask for a new one")]
    Link,
    /// Too large.
    #[error("the archive is larger than {} bytes; leave files out with .dockerignore", LARGEST)]
    TooLarge,
    /// It broke off.
    #[error("the archive broke off")]
    Incomplete,
    /// No room.
    #[error("there is no room for the archive on the server's disk")]
    Full,
    /// Something else with our disk.
    #[error("the archive could not be kept")]
    Io(io::Error),
}

impl From<io::Error> for UploadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(error),
        }
    }
}

impl Folders {
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
        let folders = self.build_folders()?;
        if !is_files_hash(hash) {
            return Err(ControlError::Invalid("Invalid files hash".to_owned()));
        }
        if self.catalog.by_id(template).is_none_or(|known| known.team != Some(team.id)) {
            return Err(ControlError::TemplateNotFound(template.to_string()));
        }
        let path = folders.file(team.id, hash);
        let present = path.is_file();
        if present {
            touch(&path);
        }
        let expires = (OffsetDateTime::now_utc() + GOOD_FOR).unix_timestamp();
        let token = self.tokens.upload(team.id, hash, expires);
        let path = format!("/cofferdam/v1/build-files/{}/{hash}?expires={expires}&token={token}", team.id);
        Ok(FilesLink { present, path })
    }

    /// Takes an archive.
    ///
    /// # Errors
    /// See [`UploadError`]; nothing is kept then.
    pub async fn receive_files<E>(
        &self,
        team: TeamId,
        hash: &str,
        expires: i64,
        token: &str,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), UploadError> {
        let folders = self.build_folders().map_err(|_| UploadError::Link)?;
        let signed = self.tokens.upload(team, hash, expires);
        let is_fresh = OffsetDateTime::now_utc().unix_timestamp() < expires;
        if !is_files_hash(hash) || !is_fresh || !same_secret(signed.as_bytes(), token.as_bytes()) {
            return Err(UploadError::Link);
        }
        let path = folders.file(team, hash);
        let new = ArchiveFile::new(path.with_extension(format!("{}.new", ids::random_hex::<4>())));
        tokio::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).await?;
        receive(new.path(), body).await?;
        Ok(tokio::fs::rename(new.path(), path).await?)
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
        let folders = self.build_folders().map_err(|_| UploadError::Link)?;
        let path = folders.file(team, &format!("archive-{}.new", ids::random_hex::<8>()));
        tokio::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).await?;
        let archive = ArchiveFile::new(path);
        receive(archive.path(), body).await?;
        Ok(Arc::new(archive))
    }
}

async fn receive<E>(
    path: &Path,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<(), UploadError> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut size = 0;
    let mut body = std::pin::pin!(body);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| UploadError::Incomplete)?;
        size += piece.len() as u64;
        if size > LARGEST {
            return Err(UploadError::TooLarge);
        }
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    Ok(file.sync_all().await?)
}

/// Its age is counted from its last use.
fn touch(path: &Path) {
    let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes what nobody has used for long.
pub(super) fn forget(folders: &Folders) {
    super::cache::forget(&folders.files(), UNUSED_FOR);
}
