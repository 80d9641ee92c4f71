//! The operator's care of the server itself. Cofferdam only; needs the admin token.

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::rest::As;
use crate::transport::read_json;
use crate::{Client, Result};

/// What was removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Number of layers.
    pub removed_layers: u64,
}

impl Client {
    /// Removes what builds keep for later ones, and layers that nothing refers to.
    ///
    /// # Errors
    /// The token is refused, or the server cannot be reached.
    pub async fn prune(&self) -> Result<Pruned> {
        read_json(
            &self
                .rest
                .call_with(As::Operator, Method::POST, "/cofferdam/v1/system/prune", &json!({}))
                .await?,
        )
    }
}
