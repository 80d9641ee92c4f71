//! Public keys by which the team's SSH clients are known.

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{Client, Result};

/// A public key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SshKey {
    /// Its id.
    #[serde(rename = "sshKeyID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// `SHA256:` and the hash of the key, as SSH clients show it.
    pub fingerprint: String,
    /// The key.
    pub public_key: String,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Client {
    /// Adds a public key, written as in a file `id_….pub`. Without a name it has that of its comment.
    ///
    /// # Errors
    /// It is no public key, or the team has it already.
    pub async fn add_ssh_key(&self, name: Option<&str>, public_key: &str) -> Result<SshKey> {
        let body = serde_json::json!({ "name": name, "publicKey": public_key });
        read_json(&self.rest.call_with(As::Team, Method::POST, "/cofferdam/v1/ssh-keys", &body).await?)
    }

    /// Lists public keys, oldest first.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn list_ssh_keys(&self) -> Result<Vec<SshKey>> {
        read_json(&self.rest.call(As::Team, Method::GET, "/cofferdam/v1/ssh-keys").await?)
    }

    /// Deletes a public key.
    ///
    /// # Errors
    /// There is no such key.
    pub async fn delete_ssh_key(&self, id: &str) -> Result<()> {
        let path = format!("/cofferdam/v1/ssh-keys/{}", encode(id));
        check(&self.rest.call(As::Team, Method::DELETE, &path).await?)
    }
}
