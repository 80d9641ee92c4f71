//! What is said over the control channel. The host asks with an id and gets one answer with the same id; the guest says by
//! itself only that it is ready. Requests are carried out one after another, in their order.
//! The host asks for nothing while it captures the guest, so a captured guest owes no answers.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRequest {
    /// Comes back with the answer.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What the host may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Make this guest one of its own, then let user code go on; after a cold start too, which leaves it with a host name and
    /// randomness of nobody in particular. If any of it fails, user code stays as it was: frozen,
    /// in a guest that was captured after [`Call::Quiesce`].
    #[serde(rename = "revive")]
    Personalize(GuestIdentity),
    /// Stop envd and all user code where they stand and write what they wrote to the private disk.
    #[serde(rename = "still")]
    Quiesce {},
    /// Set the clock and let user code go on.
    #[serde(rename = "go")]
    Resume {
        /// Time since 1970, nanoseconds.
        realtime_ns: u64,
    },
    /// Switch the machine off at once. There is no answer.
    PowerOff {},
}

/// What makes a guest different from all that were started from the same state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Time since 1970, nanoseconds.
    pub realtime_ns: u64,
    /// Fresh randomness for the guest's kernel.
    pub seed: Seed,
    /// Host name seen by user code.
    pub hostname: String,
    /// New content of `/proc/sys/kernel/random/boot_id`, a UUID; without one it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Most processes and threads of user code; without a number it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMessage {
    /// Everything is mounted, the network is up, envd runs. Said once after the start and once after each
    /// [`SYNC_MARK`](crate::SYNC_MARK).
    Ready {},
    /// The guest could not be made ready and switches itself off.
    Broken {
        /// What failed.
        reason: String,
    },
    /// To the request with this id.
    Answer {
        /// The request's.
        id: u64,
        /// What came of it.
        outcome: CallOutcome,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// All of it was done.
    Done,
    /// Something was not.
    Failed {
        /// What, and why.
        reason: String,
    },
}

/// Randomness that nobody else may know, at least [`Seed::MIN_BYTES`] bytes. Base64 on the wire, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Vec<u8>);

/// Less randomness than a kernel needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a seed of {0} bytes is too short, 32 are needed; take them from the host's random numbers")]
pub struct SeedTooShort(usize);

impl Seed {
    /// Bytes that make the kernel's random numbers unpredictable.
    pub const MIN_BYTES: usize = 32;

    /// Takes random bytes.
    ///
    /// # Errors
    /// They are too few.
    pub fn new(bytes: Vec<u8>) -> Result<Self, SeedTooShort> {
        if bytes.len() < Self::MIN_BYTES { Err(SeedTooShort(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// The bytes.
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
    fn requests_look_like_this() {
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
    fn a_seed_is_long_enough_and_secret() {
        assert_eq!(Seed::new(vec![1; 31]), Err(SeedTooShort(31)));
        let short = format!("\"{}\"", STANDARD.encode([1; 31]));
        assert!(serde_json::from_str::<Seed>(&short).is_err(), "a short one came in by the wire");
        assert_eq!(format!("{:?}", Seed::new(vec![1; 32]).unwrap()), "Seed(32 bytes)");
    }
}
