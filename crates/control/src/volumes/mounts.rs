//! What sandboxes mount: the checks of requests, in E2B's words, and the directories for the engine.

use std::collections::HashSet;
use std::sync::Arc;

use ids::TeamId;
use store::VolumeMount;
use volumes::{CreateOptions, VolumeError, VolumePath};

use super::{Volumes, blocking};
use crate::ControlError;

/// Maximum number of volumes that a sandbox mounts.
const MAX_MOUNTS: usize = 16;
/// Maximum length of the path that a volume is mounted at.
const MAX_MOUNT_PATH: usize = 1_024;
/// Directories that make a sandbox what it is.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// A volume that a new sandbox is to mount, as requested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountRequest {
    /// Name of the volume.
    pub name: String,
    /// Where it is mounted.
    pub path: String,
    /// Whether the sandbox may only read.
    pub read_only: bool,
    /// The directory of the volume to be mounted; `None` for all of it.
    pub sub_path: Option<String>,
}

impl Volumes {
    /// Checks what a new sandbox is to mount. All that is wrong is told at once, in E2B's words.
    ///
    /// # Errors
    /// [`ControlError::Invalid`].
    pub(crate) fn check_mounts(
        &self,
        team: TeamId,
        requested: Vec<MountRequest>,
    ) -> Result<Vec<VolumeMount>, ControlError> {
        if requested.is_empty() {
            return Ok(Vec::new());
        }
        self.trees()?;
        if requested.len() > MAX_MOUNTS {
            return Err(ControlError::Invalid(format!("a sandbox mounts at most {MAX_MOUNTS} volumes")));
        }
        let mut mounts: Vec<VolumeMount> = Vec::new();
        let mut reasons = Vec::new();
        let mut paths = HashSet::new();
        for (index, request) in requested.into_iter().enumerate() {
            let volume = self.named(team, &request.name);
            let mut wrong = Vec::new();
            if volume.is_none() {
                wrong.push(format!("volume '{}' not found", request.name));
            }
            wrong.extend(check_mount_path(&request.path));
            wrong.extend(request.sub_path.as_deref().and_then(check_sub_path));
            let path = request.path.trim_end_matches('/').to_owned();
            if !paths.insert(path.clone()) {
                wrong.push(format!("path '{path}' is already used"));
            } else if let Some(other) = mounts.iter().find(|other| is_within(&path, &other.path)) {
                wrong.push(format!("path '{path}' and '{}' contain each other", other.path));
            }
            reasons.extend(wrong.iter().map(|reason| format!("\n\t- volume mount #{index}: {reason}")));
            if let (Some(volume), true) = (volume, wrong.is_empty()) {
                let MountRequest { name, read_only, sub_path, .. } = request;
                mounts.push(VolumeMount { volume: volume.id, name, path, read_only, sub_path });
            }
        }
        if reasons.is_empty() {
            return Ok(mounts);
        }
        Err(ControlError::Invalid(format!("invalid mounts:{}", reasons.concat())))
    }

    /// Checks that the volumes of a paused sandbox exist.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] with the name of the first that does not.
    pub(crate) fn check_present(&self, mounts: &[VolumeMount]) -> Result<(), ControlError> {
        let by_id = self.by_id.read();
        match mounts.iter().find(|mount| !by_id.contains_key(&mount.volume)) {
            None => Ok(()),
            Some(mount) => Err(gone(&format!("volume '{}'", mount.name))),
        }
    }

    /// Opens what a sandbox mounts, for the engine.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] with the name of a volume or directory that does not exist any more.
    pub(crate) async fn open_mounts(
        &self,
        mounts: &[VolumeMount],
    ) -> Result<Vec<engine::VolumeMount>, ControlError> {
        let mut opened = Vec::new();
        for mount in mounts {
            let root = match self.open_content(mount.volume).await {
                Err(VolumeError::NoVolume) => return Err(gone(&format!("volume '{}'", mount.name))),
                root => root?,
            };
            let source = match &mount.sub_path {
                None => blocking(move || root.directory(&VolumePath::parse("/")?)).await?,
                Some(sub_path) => {
                    let path = VolumePath::parse(sub_path)?;
                    let options = CreateOptions { force: true, ..CreateOptions::default() };
                    let writable = !mount.read_only;
                    let made = blocking(move || {
                        if writable {
                            root.make_dir(&path, options)?;
                        }
                        root.directory(&path)
                    });
                    match made.await {
                        Err(VolumeError::NotFound | VolumeError::NotDirectory | VolumeError::Exists) => {
                            return Err(gone(&format!("directory '{sub_path}' of volume '{}'", mount.name)));
                        }
                        source => source?,
                    }
                }
            };
            let (path, read_only) = (mount.path.clone(), mount.read_only);
            opened.push(engine::VolumeMount { source: Arc::new(source), path, read_only });
        }
        Ok(opened)
    }
}

fn gone(what: &str) -> ControlError {
    ControlError::Conflict(format!("{what} does not exist any more"))
}

/// Returns what is wrong with the path of a mount.
fn check_mount_path(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some("path cannot be empty".into());
    }
    if !path.starts_with('/') {
        return Some("path must be absolute".into());
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Some("path must not contain any '.' or '..' components".into());
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.contains("//") || path.contains('\0') || path.len() > MAX_MOUNT_PATH {
        return Some("path must be clean and at most 1024 bytes long".into());
    }
    if path.contains(['[', ']']) || path.contains(char::is_control) {
        return Some("path must not contain brackets or control characters".into());
    }
    let reserved = trimmed.is_empty() || RESERVED.iter().any(|dir| is_below(trimmed, dir));
    reserved.then(|| format!("nothing can be mounted at path '{path}'"))
}

fn check_sub_path(path: &str) -> Option<String> {
    let parts = || path.split('/');
    let is_clean = !path.is_empty()
        && path.len() <= MAX_MOUNT_PATH
        && !path.contains('\0')
        && !parts().any(|part| matches!(part, "" | "." | ".."));
    (!is_clean).then(|| "subPath must be a clean relative path".into())
}

/// Returns whether one of two paths contains the other.
fn is_within(one: &str, other: &str) -> bool {
    is_below(one, other) || is_below(other, one)
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mounts_are_checked() {
        for good in ["/data", "/data/", "/home/user/a b", "/tmp/cache", "/runs", "/device/x"] {
            assert_eq!(check_mount_path(good), None, "{good}");
        }
        for (bad, reason) in [
            ("", "cannot be empty"),
            ("data", "must be absolute"),
            ("/a/../b", "'.' or '..'"),
            ("/a/./b", "'.' or '..'"),
            ("/a//b", "clean"),
            ("/a\0", "clean"),
            ("/", "nothing can be mounted"),
            ("//", "nothing can be mounted"),
            ("/a[1]", "brackets"),
            ("/a\nb", "control"),
            ("/proc/x", "nothing can be mounted"),
            ("/dev", "nothing can be mounted"),
        ] {
            assert!(check_mount_path(bad).is_some_and(|text| text.contains(reason)), "{bad}");
        }
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a/b") && !is_within("/ab", "/a"));
        assert!(check_sub_path("a/b").is_none());
        for bad in ["", "/a", "a/", "../a", "a//b"] {
            assert!(check_sub_path(bad).is_some(), "{bad}");
        }
    }
}
