//! Create calls that may be sent twice and must have one result.
//! Running ones are known in memory; finished ones in the store, written together with the sandbox.
//! A failed one leaves nothing, so that it can be tried again under its key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ids::{SandboxId, TeamId};
use store::Store;

use crate::ControlError;

/// Longest key a client may choose.
const MAX_KEY: usize = 255;

/// What a client sent along to make its call repeatable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
}

#[derive(Debug, Default)]
pub(crate) struct InFlight {
    calls: Mutex<HashMap<(TeamId, String), [u8; 32]>>,
}

/// The right to do a call; the key is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    in_flight: Arc<InFlight>,
    team: TeamId,
    pub(crate) key: IdempotencyKey,
}

/// What a key stands for.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Nothing yet: do it.
    Fresh(Claim),
    /// This sandbox was created under it.
    Done(SandboxId),
}

impl InFlight {
    pub(crate) async fn begin(
        self: &Arc<Self>,
        store: &dyn Store,
        team: TeamId,
        key: IdempotencyKey,
    ) -> Result<Begun, ControlError> {
        if key.key.is_empty() || key.key.len() > MAX_KEY || !key.key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ControlError::Invalid(format!(
                "Idempotency-Key must be 1 to {MAX_KEY} printable characters"
            )));
        }
        // Claimed before the store is asked: between the two nobody can finish unseen.
        let claim = self.claim(team, key)?;
        match store.idempotency(team, &claim.key.key).await? {
            None => Ok(Begun::Fresh(claim)),
            Some(done) if done.body_hash == claim.key.body_hash => Ok(Begun::Done(done.sandbox)),
            Some(_) => Err(ControlError::IdempotencyMismatch),
        }
    }

    fn claim(self: &Arc<Self>, team: TeamId, key: IdempotencyKey) -> Result<Claim, ControlError> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        match calls.get(&(team, key.key.clone())) {
            Some(hash) if *hash == key.body_hash => return Err(ControlError::IdempotencyInProgress),
            Some(_) => return Err(ControlError::IdempotencyMismatch),
            None => calls.insert((team, key.key.clone()), key.body_hash),
        };
        Ok(Claim { in_flight: Arc::clone(self), team, key })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut calls = self.in_flight.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.remove(&(self.team, self.key.key.clone()));
    }
}
