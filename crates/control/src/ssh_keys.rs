//! [`SshKeys`]: the public keys of teams, by which SSH clients reach their sandboxes. All are in memory, because they are compared before
//! a client is known.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ids::{SshKeyId, TeamId};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use store::{SshKey, Store, StoreError, truncate_to_micros};
use time::OffsetDateTime;

use crate::ControlError;

/// Maximum number of keys of a team.
const MAX_KEYS: usize = 200;
/// Maximum length of a key's name, and of the key itself, bytes.
const MAX_NAME: usize = 128;
const MAX_KEY: usize = 4096;
/// Types of keys that clients may have.
const TYPES: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The public keys of all teams.
pub struct SshKeys {
    store: Arc<dyn Store>,
    keys: RwLock<Vec<Arc<SshKey>>>,
    /// Held while a key is added, from the count to the write.
    adding: tokio::sync::Mutex<()>,
}

impl SshKeys {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let keys = store.ssh_keys().await?.into_iter().map(Arc::new).collect();
        Ok(Self { store, keys: RwLock::new(keys), adding: tokio::sync::Mutex::default() })
    }

    /// Adds a key, written as in a file `id_….pub`. Without a name it has that of its comment.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] if it is no public key, the team has it already, or has too many.
    pub async fn add(
        &self,
        team: TeamId,
        name: Option<&str>,
        text: &str,
    ) -> Result<Arc<SshKey>, ControlError> {
        let (public_key, fingerprint, comment) =
            parse(text).map_err(|reason| ControlError::Invalid(reason.into()))?;
        let name = name.unwrap_or(&comment);
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(ControlError::Invalid(format!(
                "the key needs a name of at most {MAX_NAME} characters"
            )));
        }
        let _adding = self.adding.lock().await;
        if self.of_team(team).len() >= MAX_KEYS {
            return Err(ControlError::Invalid(format!("a team has at most {MAX_KEYS} SSH keys; delete one")));
        }
        let key = Arc::new(SshKey {
            id: SshKeyId::generate(),
            team,
            name: name.to_owned(),
            fingerprint,
            public_key,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        });
        match self.store.insert_ssh_key(&key).await {
            Err(StoreError::Conflict(_)) => {
                return Err(ControlError::Invalid("the team has this SSH key already".into()));
            }
            inserted => inserted?,
        }
        self.keys.write().push(Arc::clone(&key));
        tracing::info!(team_id = %team, fingerprint = key.fingerprint, "SSH key added");
        Ok(key)
    }

    /// Returns a team's keys, oldest first.
    #[must_use]
    pub fn of_team(&self, team: TeamId) -> Vec<Arc<SshKey>> {
        self.keys.read().iter().filter(|key| key.team == team).cloned().collect()
    }

    /// Returns the teams that have the key with this fingerprint.
    #[must_use]
    pub fn teams_with(&self, fingerprint: &str) -> Vec<TeamId> {
        self.keys.read().iter().filter(|key| key.fingerprint == fingerprint).map(|key| key.team).collect()
    }

    /// Deletes a team's key. Sessions that it opened stay.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn delete(&self, team: TeamId, id: &str) -> Result<(), ControlError> {
        const NOT_FOUND: ControlError = ControlError::NotFound("SSH key not found");
        let id: SshKeyId = id.parse().map_err(|_| NOT_FOUND)?;
        if !self.keys.read().iter().any(|key| key.team == team && key.id == id) {
            return Err(NOT_FOUND);
        }
        self.store.delete_ssh_key(id).await?;
        self.keys.write().retain(|key| key.id != id);
        tracing::info!(team_id = %team, ssh_key_id = %id, "SSH key deleted");
        Ok(())
    }
}

/// Returns type and key, fingerprint, and comment of a line as in `authorized_keys`, which begins with the type.
fn parse(text: &str) -> Result<(String, String, String), &'static str> {
    const NO_KEY: &str = "that is no SSH public key: send the text of a file such as id_ed25519.pub";
    if text.len() > MAX_KEY {
        return Err("the SSH public key is too long");
    }
    if text.contains("PRIVATE KEY") {
        return Err("that is a private key: send the public one, whose file ends in .pub");
    }
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(encoded)) = (words.next(), words.next()) else { return Err(NO_KEY) };
    if kind == "ssh-rsa" {
        return Err("RSA keys are not supported: make another one with `ssh-keygen -t ed25519`");
    }
    if !TYPES.contains(&kind) {
        return Err(NO_KEY);
    }
    let bytes = STANDARD.decode(encoded).map_err(|_| NO_KEY)?;
    // The encoded key begins with its type, which has its length before it.
    let length = u32::try_from(kind.len()).map_err(|_| NO_KEY)?.to_be_bytes();
    if !bytes.starts_with(&[&length, kind.as_bytes()].concat()) {
        return Err(NO_KEY);
    }
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&bytes)));
    Ok((format!("{kind} {encoded}"), fingerprint, words.collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBZf7Wz7Fzd7hFl7vM3W3h3J0Vt3E6cJ7eQ3n4f2Yx5K";

    #[test]
    fn keys_are_read_as_ssh_keygen_writes_them() {
        let (key, fingerprint, comment) = parse(&format!("{KEY} me@laptop\n")).unwrap();
        assert_eq!((key.as_str(), comment.as_str()), (KEY, "me@laptop"));
        assert_eq!(fingerprint.len(), "SHA256:".len() + 43);
        assert_eq!(parse(KEY).unwrap().2, "");
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let other_type = KEY.replace("ssh-ed25519", "ssh-rsa");
        for bad in ["", "ssh-ed25519", "ssh-ed25519 ???", "ssh-dss AAAA", &other_type, &"a ".repeat(4000)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let private = parse("-----BEGIN OPENSSH PRIVATE KEY-----\nabc").unwrap_err();
        assert!(private.contains("private"), "{private}");
    }
}
