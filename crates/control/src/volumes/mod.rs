//! [`Volumes`]: the volumes of teams, by name and id, their tokens, and what a sandbox may mount (`mounts`).
//! Records are in the store, content in the crate `volumes`. A volume exists while it has a record: what is on the disk without one is
//! removed by the sweep at the next start.

mod mounts;

use std::collections::HashMap;
use std::sync::Arc;

use ids::{KeyId, TeamId, VolumeId};
use parking_lot::RwLock;
use store::{Store, StoreError, Team, Volume, truncate_to_micros};
use time::{Duration, OffsetDateTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use volumes::{VolumeError, VolumeRoot, VolumeTrees, VolumeUsage};

use crate::ControlError;
use crate::tokens::{Tokens, same_secret};

pub use mounts::MountRequest;

/// Maximum length of a volume's name.
const MAX_NAME: usize = 250;
/// Maximum number of volumes of a team.
const MAX_VOLUMES: usize = 1_000;
/// Places of a team for requests for content at a time.
const CONTENT_PLACES: usize = 128;
/// How long a token is valid. Clients keep one for the life of their volume object and never ask for another.
const TOKEN_LIFETIME: Duration = Duration::hours(24);

/// Why a volume token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefusal {
    /// It is no token of this server, or has expired.
    Invalid,
    /// It is the token of another volume.
    OtherVolume,
}

/// The volumes of all teams.
pub struct Volumes {
    store: Arc<dyn Store>,
    /// `None` on a server without volumes.
    trees: Option<Arc<VolumeTrees>>,
    tokens: Arc<Tokens>,
    by_id: RwLock<HashMap<VolumeId, Arc<Volume>>>,
    /// What is left of each team's places for requests for content.
    places: parking_lot::Mutex<HashMap<TeamId, Arc<Semaphore>>>,
    /// Held while a volume is created or deleted, from the look-up to the write.
    changing: tokio::sync::Mutex<()>,
}

impl Volumes {
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        trees: Option<Arc<VolumeTrees>>,
        tokens: Arc<Tokens>,
    ) -> Result<Self, StoreError> {
        let volumes = store.volumes().await?;
        if let Some(trees) = trees.clone() {
            let known: Vec<VolumeId> = volumes.iter().map(|volume| volume.id).collect();
            let _ = tokio::task::spawn_blocking(move || trees.sweep(&known)).await;
        }
        let by_id = volumes.into_iter().map(|volume| (volume.id, Arc::new(volume))).collect();
        Ok(Self {
            store,
            trees,
            tokens,
            by_id: RwLock::new(by_id),
            places: parking_lot::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Creates an empty volume.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] if the name is taken or not a name, [`ControlError::Unsupported`] on a server without volumes.
    pub async fn create(
        &self,
        team: &Team,
        name: &str,
        size_limit_mib: Option<u32>,
    ) -> Result<Arc<Volume>, ControlError> {
        self.create_with(team, name, size_limit_mib, move |trees, id| trees.create(id, size_limit_mib)).await
    }

    /// Creates a volume with the content and the limit that another one has at one moment.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], and as [`Volumes::create`].
    pub async fn copy(&self, team: &Team, id: &str, name: &str) -> Result<Arc<Volume>, ControlError> {
        let source = self.get(team.id, id)?;
        let (from, limit) = (source.id, source.size_limit_mib);
        self.create_with(team, name, limit, move |trees, id| trees.copy(from, id, limit)).await
    }

    async fn create_with(
        &self,
        team: &Team,
        name: &str,
        size_limit_mib: Option<u32>,
        make: impl FnOnce(&VolumeTrees, VolumeId) -> Result<(), VolumeError> + Send + 'static,
    ) -> Result<Arc<Volume>, ControlError> {
        let trees = self.trees()?;
        check_name(name)?;
        let _changing = self.changing.lock().await;
        if self.named(team.id, name).is_some() {
            return Err(ControlError::Invalid(format!("Volume with name '{name}' already exists")));
        }
        if self.of_team(team.id).len() >= MAX_VOLUMES {
            return Err(ControlError::Invalid(format!(
                "a team has at most {MAX_VOLUMES} volumes; delete one"
            )));
        }
        let volume = Arc::new(Volume {
            id: VolumeId::generate(),
            team: team.id,
            name: name.to_owned(),
            size_limit_mib,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        });
        let id = volume.id;
        blocking(move || make(&trees, id)).await?;
        // The tree first: a record without a tree would be a volume that cannot be used. The sweep removes a tree without a record.
        self.store.insert_volume(&volume).await?;
        self.by_id.write().insert(id, Arc::clone(&volume));
        tracing::info!(volume_id = %id, team_id = %team.id, name, "volume created");
        Ok(volume)
    }

    /// Returns a team's volumes, oldest first.
    #[must_use]
    pub fn of_team(&self, team: TeamId) -> Vec<Arc<Volume>> {
        let mut volumes: Vec<_> =
            self.by_id.read().values().filter(|volume| volume.team == team).cloned().collect();
        volumes.sort_by_key(|volume| (volume.created_at, volume.id));
        volumes
    }

    /// Returns a team's volume.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], also for a text that is no id: the SDKs take other statuses for failures.
    pub fn get(&self, team: TeamId, id: &str) -> Result<Arc<Volume>, ControlError> {
        let volume = id.parse().ok().and_then(|id: VolumeId| self.by_id.read().get(&id).cloned());
        volume.filter(|volume| volume.team == team).ok_or(NOT_FOUND)
    }

    /// Deletes a team's volume with its content. Sandboxes that have it mounted find it empty from then on.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], or its files cannot be removed.
    pub async fn delete(&self, team: TeamId, id: &str) -> Result<(), ControlError> {
        let trees = self.trees()?;
        let _changing = self.changing.lock().await;
        let id = self.get(team, id)?.id;
        if !self.store.delete_volume(id).await? {
            return Err(NOT_FOUND);
        }
        self.by_id.write().remove(&id);
        tracing::info!(volume_id = %id, team_id = %team, "volume deleted");
        blocking(move || trees.discard(id)).await?;
        Ok(())
    }

    /// Sets the limit of a team's volume; `None` removes it.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn set_limit(
        &self,
        team: TeamId,
        id: &str,
        size_limit_mib: Option<u32>,
    ) -> Result<Arc<Volume>, ControlError> {
        let trees = self.trees()?;
        let _changing = self.changing.lock().await;
        let volume = self.get(team, id)?;
        let id = volume.id;
        blocking(move || trees.set_limit(id, size_limit_mib)).await?;
        self.store.set_volume_limit(id, size_limit_mib).await?;
        let changed = Arc::new(Volume { size_limit_mib, ..(*volume).clone() });
        self.by_id.write().insert(id, Arc::clone(&changed));
        Ok(changed)
    }

    /// Returns how much room a volume takes.
    ///
    /// # Errors
    /// It has been deleted.
    pub async fn usage(&self, id: VolumeId) -> Result<VolumeUsage, ControlError> {
        let trees = self.trees()?;
        Ok(blocking(move || trees.usage(id)).await?)
    }

    /// Opens a volume's content.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] if it does not exist.
    pub async fn open_content(&self, id: VolumeId) -> Result<Arc<VolumeRoot>, VolumeError> {
        let trees = self.trees.clone().filter(|_| self.by_id.read().contains_key(&id));
        let trees = trees.ok_or(VolumeError::NoVolume)?;
        blocking(move || trees.open(id)).await.map(Arc::new)
    }

    /// Takes places for a team's request for content, each for some memory and four descriptors; `None` if the team has too many requests
    /// already.
    #[must_use]
    pub fn take_places(&self, team: TeamId, count: u32) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(
            self.places.lock().entry(team).or_insert_with(|| Arc::new(Semaphore::new(CONTENT_PLACES))),
        );
        places.try_acquire_many_owned(count).ok()
    }

    /// Returns the team that owns a volume.
    #[must_use]
    pub fn owner(&self, id: VolumeId) -> Option<TeamId> {
        self.by_id.read().get(&id).map(|volume| volume.team)
    }

    /// Returns a fresh token for a volume's content: `<volume>.<expiry>.<key>.<signature>`, the time in seconds since 1970. `key` is the
    /// API key with which it was asked for; `-` stands for none.
    #[must_use]
    pub fn token(&self, id: VolumeId, key: Option<KeyId>) -> String {
        let expires = (OffsetDateTime::now_utc() + TOKEN_LIFETIME).unix_timestamp();
        let key = key.map_or_else(|| "-".to_owned(), |key| key.to_string());
        let signature = self.tokens.volume(id, expires, &key);
        format!("{id}.{expires}.{key}.{signature}")
    }

    /// Checks a token for a volume's content; returns the API key with which it was asked for.
    ///
    /// # Errors
    /// See [`TokenRefusal`].
    pub fn check_token(&self, token: &str, id: VolumeId) -> Result<Option<KeyId>, TokenRefusal> {
        let [volume, expires, key, signature] =
            token.split('.').collect::<Vec<_>>().try_into().map_err(|_| TokenRefusal::Invalid)?;
        let volume: VolumeId = volume.parse().map_err(|_| TokenRefusal::Invalid)?;
        let expires: i64 = expires.parse().map_err(|_| TokenRefusal::Invalid)?;
        let is_ours = same_secret(self.tokens.volume(volume, expires, key).as_bytes(), signature.as_bytes());
        if !is_ours || expires < OffsetDateTime::now_utc().unix_timestamp() {
            return Err(TokenRefusal::Invalid);
        }
        if volume == id { Ok(key.parse().ok()) } else { Err(TokenRefusal::OtherVolume) }
    }

    fn named(&self, team: TeamId, name: &str) -> Option<Arc<Volume>> {
        let by_id = self.by_id.read();
        by_id.values().find(|volume| volume.team == team && volume.name == name).cloned()
    }

    fn trees(&self) -> Result<Arc<VolumeTrees>, ControlError> {
        self.trees.clone().ok_or_else(|| ControlError::Unsupported("this server has no volumes".into()))
    }
}

const NOT_FOUND: ControlError = ControlError::NotFound("Volume not found");

impl From<VolumeError> for ControlError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::NoVolume => NOT_FOUND,
            VolumeError::Invalid(text) => Self::Invalid(text),
            error => {
                tracing::error!(%error, "an operation on a volume failed");
                Self::Engine("the volume could not be read or written; see the server's log")
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(VolumeError::Io(std::io::Error::other("the operation was interrupted"))))
}

fn check_name(name: &str) -> Result<(), ControlError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain);
    if is_name { Ok(()) } else { Err(ControlError::Invalid("Invalid volume name".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "My-volume_2", &"a".repeat(250)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a.b", &"a".repeat(251)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
