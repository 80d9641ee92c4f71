//! Messages on the control channel. The host sends requests with ids and gets one answer to each;
//! by itself the guest only reports that it is ready or broken. Requests are handled one after
//! another, in order.
//!
//! The host sends no request while it captures the guest, so a captured guest owes no answer.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A request from the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRequest {
    /// Repeated in the answer.
    pub id: u64,
    /// The requested action.
    pub call: Call,
}

/// Actions that the host can request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Give this guest its own identity, then resume user code. Sent after a boot, too, which
    /// leaves the guest with a default host name. If any part fails, user code stays as it was:
    /// frozen, in a guest that was captured after [`Call::Quiesce`].
    #[serde(rename = "revive")]
    Personalize(GuestIdentity),
    /// Freeze envd and all user code, and sync the private disk.
    #[serde(rename = "still")]
    Quiesce {},
    /// Set the clock and resume user code.
    #[serde(rename = "go")]
    Resume {
        /// Time since 1970, nanoseconds.
        realtime_ns: u64,
    },
    /// Power off at once. There is no answer.
    PowerOff {},
}

/// What distinguishes a guest from others that were restored from the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Time since 1970, nanoseconds.
    pub realtime_ns: u64,
    /// Fresh randomness for the guest kernel.
    pub seed: Seed,
    /// Host name that user code sees.
    pub hostname: String,
    /// New content of `/proc/sys/kernel/random/boot_id`, a UUID; unchanged if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Maximum number of processes and threads of user code; unchanged if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

/// A message from the guest to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMessage {
    /// Everything is mounted, the network is up and envd runs. Sent once after the start and once
    /// after each [`SYNC_MARK`](crate::SYNC_MARK).
    Ready {},
    /// The guest could not be prepared, or envd has ended; the guest powers off.
    Broken {
        /// What failed.
        reason: String,
    },
    /// The answer to a request.
    Answer {
        /// The id of the request.
        id: u64,
        /// Whether it succeeded.
        outcome: CallOutcome,
    },
}

/// Whether a request succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// All of it was done.
    Done,
    /// Some of it was not done.
    Failed {
        /// What, and why.
        reason: String,
    },
}

/// Secret random bytes, at least [`Seed::MIN_BYTES`]. Base64 on the wire; never shown in debug
/// output.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Vec<u8>);

/// The error of too few random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a seed of {0} bytes is too short; at least 32 random bytes are needed")]
pub struct SeedTooShort(usize);

impl Seed {
    /// Minimum number of bytes: as many as the kernel's random number generator needs.
    pub const MIN_BYTES: usize = 32;

    /// Wraps random bytes.
    ///
    /// # Errors
    /// There are fewer than [`Seed::MIN_BYTES`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, SeedTooShort> {
        if bytes.len() < Self::MIN_BYTES { Err(SeedTooShort(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({} bytes)", self.0.len())
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_wire_format() {
        let seed = Seed::new(vec![0; 32]).unwrap();
        let identity =
            GuestIdentity { realtime_ns: 5, seed, hostname: "a".into(), boot_id: None, pids: Some(9) };
        let request = HostRequest { id: 7, call: Call::Personalize(identity) };
        let text = serde_json::to_string(&request).unwrap();
        let zeros = STANDARD.encode([0; 32]);
        let wanted = format!(
            r#"{{"id":7,"call":{{"revive":{{"realtime_ns":5,"seed":"{zeros}","hostname":"a","pids":9}}}}}}"#
        );
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<HostRequest>(&text).unwrap(), request);
        let still = serde_json::to_string(&HostRequest { id: 8, call: Call::Quiesce {} }).unwrap();
        assert_eq!(still, r#"{"id":8,"call":{"still":{}}}"#);
    }

    #[test]
    fn short_seeds_are_rejected_and_seeds_are_not_shown() {
        assert_eq!(Seed::new(vec![1; 31]), Err(SeedTooShort(31)));
        let short = format!("\"{}\"", STANDARD.encode([1; 31]));
        assert!(serde_json::from_str::<Seed>(&short).is_err(), "a short seed was accepted from the wire");
        assert_eq!(format!("{:?}", Seed::new(vec![1; 32]).unwrap()), "Seed(32 bytes)");
    }
}
