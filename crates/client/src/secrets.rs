//! Secrets of the team: values that header rules of sandboxes refer to by name. A value is never returned.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::rest::{As, encode};
use crate::transport::{check, read_json};
use crate::{Client, Error, Result};

/// A secret without its value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its id.
    #[serde(rename = "secretID")]
    pub id: String,
    /// Its name, in lower case.
    pub name: String,
    /// Counts its values.
    pub current_version: u64,
    /// Metadata of the user.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its value was last set.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl Client {
    /// Gives the secret of this name a value, and creates it if there is none. Metadata that is not given stays.
    ///
    /// # Errors
    /// Name, value or metadata is not valid, or the team has too many secrets.
    pub async fn set_secret(
        &self,
        name: &str,
        value: &str,
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Secret> {
        let mut body = serde_json::json!({ "value": value });
        if let Some(metadata) = metadata {
            body["metadata"] = serde_json::json!(metadata);
        }
        let path = format!("/secrets/{}", encode(name));
        match read_json(&self.rest.call_with(As::Team, Method::POST, &path, &body).await?) {
            Err(Error::NotFound(_)) => {}
            other => return other,
        }
        body["name"] = name.into();
        read_json(&self.rest.call_with(As::Team, Method::POST, "/secrets", &body).await?)
    }

    /// Lists secrets, oldest first.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn list_secrets(&self) -> Result<Vec<Secret>> {
        self.pages("/secrets", &[]).await
    }

    /// Deletes a secret by its name or id. Returns whether it existed.
    ///
    /// # Errors
    /// The key is refused, or the server cannot be reached.
    pub async fn delete_secret(&self, secret: &str) -> Result<bool> {
        let path = format!("/secrets/{}", encode(secret));
        match check(&self.rest.call(As::Team, Method::DELETE, &path).await?) {
            Ok(()) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
