//! Fetches manifests and blobs of a repository from a registry, by the distribution protocol, version 2.
//! Registries are untrusted: lengths are checked against descriptors, digests are computed while data is read. Transient errors are
//! retried a few times.

mod auth;
mod config;
mod ecr;
mod http;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::OciError;
use crate::digest::Digest;
use crate::media::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use config::RegistryHost;
pub use config::{Credentials, Mirror, Registries};
use http::{Http, HttpRequest, HttpResponse, protocol};

/// Maximum number of attempts of a request.
const MAX_ATTEMPTS: u32 = 3;
/// Delay before the second attempt; doubled before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// A repository in a registry.
pub(crate) struct Repository {
    http: Http,
    origin: RegistryHost,
    name: String,
    /// The image reference, for messages.
    image: String,
    /// The registry as in the reference, for messages.
    registry: String,
    login: auth::Login,
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<ErrorCode>,
}

#[derive(Deserialize)]
struct ErrorCode {
    #[serde(default)]
    code: String,
}

impl Repository {
    pub(crate) async fn open(
        registries: Registries,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Self, OciError> {
        let (origin, name) = registries.route(reference)?;
        let http = tokio::task::spawn_blocking(move || Http::new(registries));
        let http = http.await.map_err(|error| protocol(&origin, &error.to_string()))?;
        let login = auth::login(&http, credentials).await?;
        Ok(Self {
            http,
            origin,
            name,
            image: reference.as_given().to_owned(),
            registry: reference.registry().to_owned(),
            login,
            authorization: Mutex::new(None),
        })
    }

    /// Fetches a manifest or index by tag or digest; returns it with its digest.
    pub(crate) async fn manifest(&self, version: &str) -> Result<(Vec<u8>, Digest), OciError> {
        let mut headers = HeaderMap::new();
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            headers.append(header::ACCEPT, HeaderValue::from_static(media_type));
        }
        let path = format!("manifests/{version}");
        let mut attempts = Attempts::default();
        let text = loop {
            match self.get_bytes(&path, &headers).await {
                Err(error) if attempts.wait_for_another(&error).await => {}
                Err(OciError::ImageNotFound(image)) if !self.is_there().await => {
                    return Err(OciError::RepositoryNotFound(image));
                }
                answer => break answer?,
            }
        };
        let found = Digest::of(&text);
        match version.parse::<Digest>() {
            Ok(expected) if expected != found => Err(self.damaged("a manifest", &expected, &found)),
            _ => Ok((text, found)),
        }
    }

    /// Fetches a small blob into memory.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        if descriptor.size > MAX_DOCUMENT {
            return Err(OciError::malformed("the image's configuration", &"it is longer than 8 MiB"));
        }
        let mut attempts = Attempts::default();
        loop {
            let mut content = Vec::new();
            match self.fetch(descriptor, &mut content, &|_| {}).await {
                Err(error) if attempts.wait_for_another(&error).await => {}
                answer => return answer.map(|()| content),
            }
        }
    }

    /// Fetches a blob into a new file. Calls `progress` with the length of each piece, and with a negative number to take back those of
    /// a failed attempt.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        path: &Path,
        progress: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<(), OciError> {
        let mut attempts = Attempts::default();
        loop {
            let mut file = File::create(path).map_err(OciError::at(path))?;
            match self.fetch(descriptor, &mut file, progress).await {
                Err(error) if attempts.wait_for_another(&error).await => {}
                answer => return answer,
            }
        }
    }

    async fn fetch(
        &self,
        descriptor: &Descriptor,
        to: &mut (impl Write + Send),
        progress: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<(), OciError> {
        let mut taken = AttemptProgress { progress, count: 0 };
        let mut answer = self.get(&format!("blobs/{}", descriptor.digest), &HeaderMap::new()).await?;
        let mut hash = Sha256::new();
        let mut length = 0;
        while let Some(piece) = answer.piece().await? {
            length += piece.len() as u64;
            if length > descriptor.size {
                return Err(self.length(descriptor, length));
            }
            hash.update(&piece);
            to.write_all(&piece).map_err(|error| OciError::at(Path::new("the download"))(error))?;
            taken.add(piece.len());
        }
        if length < descriptor.size {
            return Err(self.length(descriptor, length));
        }
        let found = Digest::from_hash(hash);
        if found != descriptor.digest {
            return Err(self.damaged("a blob", &descriptor.digest, &found));
        }
        taken.keep();
        Ok(())
    }

    /// Returns whether the registry has the repository: some registries only report that a tag is missing.
    async fn is_there(&self) -> bool {
        let answer = self.get("tags/list?n=1", &HeaderMap::new()).await;
        !matches!(answer, Err(OciError::RepositoryNotFound(_)))
    }

    async fn get_bytes(&self, path: &str, headers: &HeaderMap) -> Result<Vec<u8>, OciError> {
        self.get(path, headers).await?.bytes(MAX_DOCUMENT).await
    }

    async fn get(&self, path: &str, headers: &HeaderMap) -> Result<HttpResponse, OciError> {
        let scheme = if self.origin.is_tls { "https" } else { "http" };
        let address = format!("{scheme}://{}/v2/{}/{path}", self.origin.authority, self.name);
        let uri: Uri = address.parse().map_err(|_| protocol(&self.origin, "the image's address is none"))?;
        let mut is_second = false;
        loop {
            let mut headers = headers.clone();
            let used = self.authorization.lock().await.clone();
            if let Some(value) = &used {
                headers.insert(header::AUTHORIZATION, value.clone());
            }
            let ask = HttpRequest { method: Method::GET, uri: uri.clone(), headers, body: Bytes::new() };
            let answer = self.http.ask(ask).await.map_err(|error| self.named(error))?;
            if answer.status == StatusCode::OK {
                return Ok(answer);
            }
            if answer.status == StatusCode::UNAUTHORIZED && !is_second {
                is_second = true;
                if self.authenticate(&answer.headers, used.as_ref()).await? {
                    continue;
                }
            }
            return Err(self.refusal(answer).await);
        }
    }

    /// Gets new credentials, unless another task did meanwhile; returns whether there are new ones.
    async fn authenticate(
        &self,
        challenges: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<bool, OciError> {
        let mut authorization = self.authorization.lock().await;
        if authorization.as_ref() != used {
            return Ok(true);
        }
        let new = auth::answer(&self.http, &self.origin, challenges, &self.login, &self.name).await?;
        let is_new = new.is_some() && new.as_ref() != used;
        *authorization = new;
        Ok(is_new)
    }

    /// Converts an error response, by the registry's error code or else by the status.
    async fn refusal(&self, answer: HttpResponse) -> OciError {
        let status = answer.status;
        let content = answer.bytes(MAX_DOCUMENT).await.unwrap_or_default();
        let errors: Vec<ErrorCode> =
            serde_json::from_slice::<Errors>(&content).map(|body| body.errors).unwrap_or_default();
        let image = self.image.clone();
        match (errors.first().map_or("", |error| error.code.as_str()), status) {
            ("MANIFEST_UNKNOWN" | "BLOB_UNKNOWN" | "NOT_FOUND", _) => OciError::ImageNotFound(image),
            ("NAME_UNKNOWN" | "NAME_INVALID", _) => OciError::RepositoryNotFound(image),
            ("UNAUTHORIZED", _) => OciError::Unauthorized(image),
            ("DENIED", _) => OciError::Denied(image),
            (_, StatusCode::NOT_FOUND) => OciError::ImageNotFound(image),
            (_, StatusCode::UNAUTHORIZED) => OciError::Unauthorized(image),
            (_, StatusCode::FORBIDDEN) => OciError::Denied(image),
            (_, status) => OciError::Status { image, status: status.as_u16() },
        }
    }

    /// Adds the registry of the reference to errors that name only its mirror.
    fn named(&self, error: OciError) -> OciError {
        match error {
            OciError::Unreachable { registry, why } if registry == self.origin.authority => {
                let host = &self.origin.authority;
                let is_itself =
                    *host == self.registry || self.registry == "docker.io" && host == "registry-1.docker.io";
                if !is_itself {
                    tracing::warn!(
                        registry = self.registry,
                        mirror = host,
                        why,
                        "a registry's mirror cannot be reached"
                    );
                }
                let why = if is_itself { why } else { format!("its mirror: {why}") };
                OciError::Unreachable { registry: self.registry.clone(), why }
            }
            other => other,
        }
    }

    fn damaged(&self, what: &str, expected: &Digest, found: &Digest) -> OciError {
        OciError::Damaged {
            what: format!("{what} of image '{}'", self.image),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn length(&self, descriptor: &Descriptor, found: u64) -> OciError {
        OciError::Length {
            what: format!("a blob of image '{}'", self.image),
            expected: descriptor.size,
            found,
        }
    }
}

/// Number of attempts of a request so far.
#[derive(Default)]
struct Attempts(u32);

impl Attempts {
    /// Returns whether to try again, after a delay.
    async fn wait_for_another(&mut self, error: &OciError) -> bool {
        self.0 += 1;
        if self.0 >= MAX_ATTEMPTS || !is_transient(error) {
            return false;
        }
        tokio::time::sleep(RETRY_DELAY * 2u32.pow(self.0 - 1)).await;
        true
    }
}

/// Returns whether an error may be gone at another attempt.
fn is_transient(error: &OciError) -> bool {
    match error {
        // Not sooner over for a name inside than for one that does not exist.
        OciError::Unreachable { .. } | OciError::NoAddress { .. } => true,
        OciError::Status { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
        OciError::Length { expected, found, .. } => found < expected,
        _ => false,
    }
}

/// The progress that an attempt has reported, taken back when it fails.
struct AttemptProgress<'a> {
    progress: &'a (dyn Fn(i64) + Send + Sync),
    count: i64,
}

impl AttemptProgress<'_> {
    fn add(&mut self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.count += count;
        (self.progress)(count);
    }

    fn keep(mut self) {
        self.count = 0;
    }
}

impl Drop for AttemptProgress<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            (self.progress)(-self.count);
        }
    }
}
