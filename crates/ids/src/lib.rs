//! Identifiers, one type for each kind, so that a template id cannot be used as a sandbox id. Formats follow the E2B wire contract and
//! are checked by parsing.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Characters or length do not match the format.
    #[error("invalid {kind}: {text:?}")]
    Malformed {
        /// The kind of identifier, such as `sandbox ID`.
        kind: &'static str,
        /// The text.
        text: String,
    },
}

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Returns `len` random characters of `[a-z0-9]`, all equally likely.
fn random_text(len: usize) -> String {
    let mut text = String::with_capacity(len);
    let mut pool = [0u8; 64];
    while text.len() < len {
        fill_random(&mut pool);
        // 252 = 7 * 36: larger bytes would make the first letters more likely.
        let fresh = pool.iter().filter(|b| **b < 252).map(|b| ALPHABET[usize::from(*b % 36)] as char);
        text.extend(fresh.take(len - text.len()));
    }
    text
}

fn fill_random(buf: &mut [u8]) {
    getrandom::fill(buf).expect("the kernel's random source answers on every supported system");
}

/// Returns `N` random bytes as lower-case hex: `2 * N` characters.
#[must_use]
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0u8; N];
    fill_random(&mut bytes);
    bytes.iter().fold(String::with_capacity(2 * N), |mut hex, byte| {
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        hex
    })
}

fn is_lower_alphanumeric(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $generate:expr, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns a new random identifier.
            #[must_use]
            pub fn generate() -> Self {
                Self($generate)
            }

            /// Returns the identifier as in URLs and JSON.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_lower_alphanumeric(text) && text.len() <= $max {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::Malformed { kind: $kind, text: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A sandbox: `i` and 20 characters of `[a-z0-9]`. Part of a DNS label (`<port>-<id>`), so never longer than 57.
    SandboxId,
    "sandbox ID",
    format!("i{}", random_text(20)),
    57
);
text_id!(
    /// A template or snapshot: 20 characters of `[a-z0-9]`.
    TemplateId,
    "template ID",
    random_text(20),
    64
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// Returns a new random (version 4) identifier.
            #[must_use]
            pub fn generate() -> Self {
                Self(uuid::Uuid::new_v4())
            }

            /// Returns the identifier of this number.
            #[must_use]
            pub fn from_u128(number: u128) -> Self {
                Self(uuid::Uuid::from_u128(number))
            }

            /// Returns the identifier as a number.
            #[must_use]
            pub fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                uuid::Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| IdError::Malformed { kind: $kind, text: text.to_owned() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// One build of a template.
    BuildId,
    "build ID"
);
uuid_id!(
    /// A team: the owner of sandboxes, templates and API keys.
    TeamId,
    "team ID"
);
uuid_id!(
    /// One run of a sandbox between start (or resume) and stop (or pause).
    ExecutionId,
    "execution ID"
);
uuid_id!(
    /// A snapshot of a sandbox: its files, and possibly its memory.
    SnapshotId,
    "snapshot ID"
);
uuid_id!(
    /// The record of an API key, not the secret itself.
    KeyId,
    "API key ID"
);
uuid_id!(
    /// A volume.
    VolumeId,
    "volume ID"
);
uuid_id!(
    /// A public key that SSH clients prove to have.
    SshKeyId,
    "SSH key ID"
);
uuid_id!(
    /// A user.
    UserId,
    "user ID"
);
uuid_id!(
    /// The record of a user's access token, not the secret itself.
    TokenId,
    "access token ID"
);
uuid_id!(
    /// An event of a sandbox.
    EventId,
    "event ID"
);
uuid_id!(
    /// A webhook.
    WebhookId,
    "webhook ID"
);
uuid_id!(
    /// A pending delivery of an event to a webhook.
    DeliveryId,
    "delivery ID"
);

/// A secret of a team: `sec_` and the 26 digits of a UUID to the base 32 (Crockford's, in lower case). Ids sort by the time at which they
/// were made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId(String);

impl SecretId {
    /// How every id of a secret begins, and no name.
    pub const PREFIX: &'static str = "sec_";
    const DIGITS: &'static [u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

    /// Returns a new identifier that sorts after the earlier ones.
    #[must_use]
    pub fn in_order() -> Self {
        let number = uuid::Uuid::now_v7().as_u128();
        let digits = (0..26).rev().map(|place| {
            let digit = usize::try_from(number >> (5 * place) & 31).unwrap_or_default();
            char::from(Self::DIGITS[digit])
        });
        Self(Self::PREFIX.chars().chain(digits).collect())
    }

    /// Returns the identifier as in URLs and JSON.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let is_valid = text.strip_prefix(Self::PREFIX).is_some_and(|digits| {
            digits.len() == 26
                && digits.starts_with(['0', '1', '2', '3', '4', '5', '6', '7'])
                && digits.bytes().all(|digit| Self::DIGITS.contains(&digit))
        });
        let malformed = || IdError::Malformed { kind: "secret ID", text: text.to_owned() };
        is_valid.then(|| Self(text.to_owned())).ok_or_else(malformed)
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl EventId {
    /// Returns a new identifier that sorts by time, so that events of the same moment keep their order.
    #[must_use]
    pub fn in_order() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// Returns the identifier of the end of an execution, always the same, so that it is recorded only once.
    #[must_use]
    pub fn of_end(execution: ExecutionId) -> Self {
        Self(uuid::Uuid::new_v5(&execution.0, b"end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_secrets_sort_and_are_checked() {
        let (first, second) = (SecretId::in_order(), SecretId::in_order());
        assert!(first < second);
        assert_eq!(first.as_str().parse::<SecretId>().unwrap(), first);
        for bad in ["", "sec_", "api_key", "sec_8zzzzzzzzzzzzzzzzzzzzzzzzz", "sec_0000000000000000000000000u"]
        {
            assert!(bad.parse::<SecretId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_ids_have_the_contract_format() {
        let id = SandboxId::generate();
        assert_eq!(id.as_str().len(), 21);
        assert!(id.as_str().starts_with('i'));
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        assert_eq!(TemplateId::generate().as_str().len(), 20);
        assert_ne!(SandboxId::generate(), SandboxId::generate());
    }

    #[test]
    fn characters_that_are_special_in_dns_names_or_paths_are_refused() {
        for bad in ["", "UPPER", "a-b", "a/b", "..", "ä", "a b", &"a".repeat(58)] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn random_hex_has_two_digits_a_byte() {
        let hex = random_hex::<20>();
        assert_eq!(hex.len(), 40);
        assert!(hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    }
}
