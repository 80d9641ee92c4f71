//! Workload identity: JSON Web Tokens by which a sandbox proves to other services who it is (`iam.tokens`), and the OpenID Connect
//! documents by which those services verify them. Tokens never enter a sandbox: header rules send them.
#![forbid(unsafe_code)]

mod keys;

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use zeroize::Zeroizing;

pub use keys::KeyError;
use keys::KeyRing;

/// How long a token is valid, seconds.
const TOKEN_LIFETIME: u64 = 300;
/// Maximum number of tokens that are kept for further requests.
const MAX_KEPT: usize = 4096;

/// Who a token is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The team that owns the sandbox.
    pub team: String,
    /// Its template.
    pub template: String,
    /// The sandbox.
    pub sandbox: String,
    /// Its execution: another one after each resume.
    pub execution: String,
}

/// Signs tokens in the name of one server.
pub struct Issuer {
    url: String,
    trust_domain: String,
    keys: KeyRing,
    kept: Mutex<HashMap<(Subject, String), Kept>>,
}

/// A token that is used again for the same subject and audience.
struct Kept {
    token: Zeroizing<String>,
    made_at: u64,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Issuer {
    /// Opens an issuer with keys in a file, which is made when the first key is needed. `url` is the server's public one, without a slash
    /// at its end.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn open(url: &str, keys: &Path) -> Result<Self, KeyError> {
        let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
        let trust_domain = authority.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let keys = KeyRing::open(keys)?;
        Ok(Self { url: url.to_owned(), trust_domain, keys, kept: Mutex::default() })
    }

    /// Makes the first key if there is none, which takes up to some seconds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn prepare(&self) -> Result<(), KeyError> {
        self.keys.with(now(), |_| ())
    }

    /// Returns a token for an audience: a new one, or one that was made for the same execution in the first half of its life. May block
    /// for some seconds where a key has to be made.
    ///
    /// # Errors
    /// There is no key.
    pub fn token(&self, subject: &Subject, audience: &str) -> Result<Zeroizing<String>, KeyError> {
        self.token_at(subject, audience, now())
    }

    fn token_at(&self, subject: &Subject, audience: &str, now: u64) -> Result<Zeroizing<String>, KeyError> {
        let is_fresh = |kept: &Kept| (kept.made_at..kept.made_at + TOKEN_LIFETIME / 2).contains(&now);
        let slot = (subject.clone(), audience.to_owned());
        if let Some(kept) = self.kept.lock().get(&slot).filter(|kept| is_fresh(kept)) {
            return Ok(kept.token.clone());
        }
        let token = self.sign(&self.claims(subject, audience, now), now)?;
        let mut all = self.kept.lock();
        if all.len() >= MAX_KEPT {
            all.retain(|_, kept| is_fresh(kept));
        }
        if all.len() < MAX_KEPT {
            all.insert(slot, Kept { token: token.clone(), made_at: now });
        }
        Ok(token)
    }

    fn claims(&self, subject: &Subject, audience: &str, now: u64) -> Value {
        let Subject { team, template, sandbox, execution } = subject;
        json!({
            "iss": self.url,
            "sub": format!("spiffe://{}/team/{team}/template/{template}/sandbox/{sandbox}", self.trust_domain),
            "aud": audience,
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_LIFETIME,
            "jti": ids::random_hex::<16>(),
            "team_id": team,
            "template_id": template,
            "sandbox_id": sandbox,
            "execution_id": execution,
        })
    }

    fn sign(&self, claims: &Value, now: u64) -> Result<Zeroizing<String>, KeyError> {
        self.keys.with(now, |keys| {
            let key = keys.signing();
            let header = json!({ "alg": "RS256", "typ": "JWT", "kid": key.id });
            let signed =
                [header, claims.clone()].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
            let signature = key.sign(signed.as_bytes())?;
            Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
        })?
    }

    /// Returns the document at `/.well-known/openid-configuration`.
    #[must_use]
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{}/.well-known/jwks.json", self.url),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "claims_supported": [
                "iss", "sub", "aud", "iat", "nbf", "exp", "jti", "team_id", "template_id", "sandbox_id", "execution_id",
            ],
        })
    }

    /// Returns the document at `/.well-known/jwks.json`: the public keys. Without any key the list is empty; none is made, as anybody may
    /// ask.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.keys.public_keys().into_iter().map(|key| {
            json!({
                "kty": "RSA", "use": "sig", "alg": "RS256", "kid": key.id,
                "n": URL_SAFE_NO_PAD.encode(key.modulus), "e": URL_SAFE_NO_PAD.encode(key.exponent),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};

    use super::*;

    fn decode(part: &str) -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_signed_by_a_published_key_and_kept_for_half_their_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let issuer = Issuer::open("https://api.box.test:8443", &path).unwrap();
        assert_eq!(issuer.jwks()["keys"].as_array().unwrap().len(), 0, "asking makes no key");
        let subject = |execution: &str| Subject {
            team: "t".to_owned(),
            template: "base".to_owned(),
            sandbox: "i1".to_owned(),
            execution: execution.to_owned(),
        };
        let token = issuer.token_at(&subject("e1"), "aud", 1_000_000).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let (header, claims) = (decode(parts[0]), decode(parts[1]));
        let key = &issuer.jwks()["keys"][0];
        assert_eq!((&header["kid"], &header["alg"]), (&key["kid"], &json!("RS256")));
        assert_eq!(claims["sub"], "spiffe://api.box.test/team/t/template/base/sandbox/i1");
        assert_eq!((&claims["aud"], &claims["iss"]), (&json!("aud"), &json!("https://api.box.test:8443")));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), TOKEN_LIFETIME);
        let number = |field: &str| URL_SAFE_NO_PAD.decode(key[field].as_str().unwrap()).unwrap();
        let public = RsaPublicKeyComponents { n: number("n"), e: number("e") };
        let signed = format!("{}.{}", parts[0], parts[1]);
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        public.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature).unwrap();

        assert_eq!(issuer.token_at(&subject("e1"), "aud", 1_000_149).unwrap(), token);
        assert_ne!(issuer.token_at(&subject("e1"), "aud", 1_000_150).unwrap(), token);
        assert_ne!(issuer.token_at(&subject("e2"), "aud", 1_000_001).unwrap(), token, "another execution");
        assert_ne!(issuer.token_at(&subject("e1"), "other", 1_000_001).unwrap(), token);
        let again = Issuer::open("https://api.box.test:8443", &path).unwrap();
        assert_eq!(again.jwks(), issuer.jwks(), "keys outlive the server");
    }
}
