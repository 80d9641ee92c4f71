//! Creates with an idempotency key: sent twice, they have one result. Creates in progress are known in memory; finished ones in the
//! store, written together with the sandbox. A failed create leaves nothing, so its key can be used again.

use std::collections::HashMap;
use std::sync::Arc;

use ids::{SandboxId, TeamId};
use parking_lot::Mutex;
use store::Store;

use crate::ControlError;

/// Maximum length of a key.
const MAX_KEY: usize = 255;

/// A client's idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
}

/// Creates in progress, by team and key.
#[derive(Debug, Default)]
pub(crate) struct InFlightCreates {
    body_hashes: Mutex<HashMap<(TeamId, String), [u8; 32]>>,
}

/// The exclusive right to create a sandbox with a key; dropping it frees the key.
#[derive(Debug)]
pub(super) struct CreateClaim {
    in_flight: Arc<InFlightCreates>,
    team: TeamId,
    pub(super) key: IdempotencyKey,
}

/// Whether a create with a key is to be done.
#[derive(Debug)]
pub(super) enum Idempotent {
    /// It has not been done.
    New(CreateClaim),
    /// An earlier create with the key made this sandbox.
    Done(SandboxId),
}

impl InFlightCreates {
    /// Claims a key.
    ///
    /// # Errors
    /// The key is malformed, was used with another body, or a create with it is in progress.
    pub(super) async fn begin(
        self: &Arc<Self>,
        store: &dyn Store,
        team: TeamId,
        key: IdempotencyKey,
    ) -> Result<Idempotent, ControlError> {
        if key.key.is_empty() || key.key.len() > MAX_KEY || !key.key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ControlError::Invalid(format!(
                "Idempotency-Key must be 1 to {MAX_KEY} printable characters"
            )));
        }
        // The claim comes before the look into the store: otherwise another create could finish unseen in between.
        let claim = self.claim(team, key)?;
        match store.idempotency(team, &claim.key.key).await? {
            None => Ok(Idempotent::New(claim)),
            Some(done) if done.body_hash == claim.key.body_hash => Ok(Idempotent::Done(done.sandbox)),
            Some(_) => Err(ControlError::IdempotencyMismatch),
        }
    }

    fn claim(self: &Arc<Self>, team: TeamId, key: IdempotencyKey) -> Result<CreateClaim, ControlError> {
        let mut hashes = self.body_hashes.lock();
        match hashes.get(&(team, key.key.clone())) {
            Some(hash) if *hash == key.body_hash => return Err(ControlError::IdempotencyInProgress),
            Some(_) => return Err(ControlError::IdempotencyMismatch),
            None => hashes.insert((team, key.key.clone()), key.body_hash),
        };
        Ok(CreateClaim { in_flight: Arc::clone(self), team, key })
    }
}

impl Drop for CreateClaim {
    fn drop(&mut self) {
        self.in_flight.body_hashes.lock().remove(&(self.team, self.key.key.clone()));
    }
}
