//! What registries and token servers may answer, played by small servers: tokens, redirects, failures, lies.
//! The images are of one layer, made here; real registries are in `registry.rs`.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use layers::LayerStore;
use oci::{Credentials, Digest, Image, OciError, Phase, PullOptions, Reference};
use tokio::net::TcpListener;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer = Response<Body>;

/// A request: method, path with query, and its `Authorization`.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    path: String,
    authorization: Option<String>,
    headers: http::HeaderMap,
}

struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let asked = Asked {
                        path: request.uri().to_string(),
                        authorization: request
                            .headers()
                            .get(header::AUTHORIZATION)
                            .map(|value| value.to_str().unwrap().to_owned()),
                        headers: request.headers().clone(),
                    };
                    log.lock().unwrap().push(asked.clone());
                    let answer = answer(&asked);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move {
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, asked, task }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.path.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Full::new(body.into()).map_err(|never| match never {});
    response.body(body.boxed_unsync()).unwrap()
}

/// Some bytes, and then the connection breaks.
fn broken(body: Bytes) -> Answer {
    let pieces = [Ok(Frame::data(body)), Err(std::io::Error::other("broken on purpose"))];
    Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync())
}

/// An image of one layer, by path below `/v2/a/`.
struct Content {
    layer: Bytes,
    config: Bytes,
    manifest: Bytes,
}

impl Content {
    fn new() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1 << 20);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, "file", &vec![7; 1 << 20][..]).unwrap();
        let layer = tar.into_inner().unwrap();
        let digest = Digest::of(&layer).to_string();
        let config = serde_json::json!({ "os": "linux", "architecture": oci::host_architecture(),
            "rootfs": { "type": "layers", "diff_ids": [digest] } })
        .to_string();
        let manifest = serde_json::json!({ "schemaVersion": 2,
            "config": { "mediaType": "c", "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len() },
            "layers": [{ "mediaType": "l", "digest": digest, "size": layer.len() }] })
        .to_string();
        Self { layer: layer.into(), config: config.into(), manifest: manifest.into() }
    }

    fn layer_path(&self) -> String {
        format!("/v2/a/blobs/{}", Digest::of(&self.layer))
    }

    fn answer(&self, path: &str) -> Answer {
        if path.starts_with("/v2/a/manifests/") {
            return answer(200, &[], self.manifest.clone());
        }
        let blobs = [&self.layer, &self.config];
        match blobs.into_iter().find(|blob| path.ends_with(Digest::of(blob).hex())) {
            Some(blob) => answer(200, &[], blob.clone()),
            None => answer(404, &[], ""),
        }
    }
}

fn options(servers: &[&Server]) -> PullOptions {
    let mut options = PullOptions::default();
    options.registries.insecure.extend(servers.iter().map(|server| server.host()));
    options
}

async fn pull(server: &Server, options: &PullOptions) -> Result<Image, OciError> {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let reference: Reference = format!("{}/a:v1", server.host()).parse().unwrap();
    let options = options.clone();
    // In a task, as a server does it.
    tokio::spawn(async move { oci::pull(&store, &reference, &options, &|_| {}).await }).await.unwrap()
}

fn basic(name: &str, password: &str) -> Option<String> {
    Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
}

/// A registry that wants a token, and the server that gives it.
async fn with_tokens(login: Option<String>) -> (Server, Server) {
    let content = Content::new();
    let tokens = Server::start(move |asked| {
        if asked.authorization == login {
            answer(200, &[], r#"{"token":"the-token","expires_in":300}"#)
        } else {
            answer(401, &[], "{}")
        }
    })
    .await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="the service",scope="repository:a:pull""#,
        tokens.host()
    );
    let registry = Server::start(move |asked| match asked.authorization.as_deref() {
        Some("Bearer the-token") => content.answer(&asked.path),
        _ => answer(401, &[("www-authenticate", &challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#),
    })
    .await;
    (registry, tokens)
}

#[tokio::test]
async fn tokens_are_got_once_and_used() {
    for (credentials, login) in [
        (Credentials::Anonymous, None),
        (Credentials::Basic { username: "u".to_owned(), password: "p:w".to_owned() }, basic("u", "p:w")),
        (
            Credentials::Gcp { service_account_json: r#"{"type":"service_account"}"#.to_owned() },
            basic("_json_key", r#"{"type":"service_account"}"#),
        ),
    ] {
        let (registry, tokens) = with_tokens(login).await;
        let options = PullOptions { credentials, ..options(&[&registry, &tokens]) };
        pull(&registry, &options).await.unwrap();
        assert_eq!(tokens.paths(), ["/token?scope=repository%3Aa%3Apull&service=the%20service"]);
    }
}

#[tokio::test]
async fn wrong_logins_are_told() {
    let (registry, tokens) = with_tokens(basic("u", "right")).await;
    let credentials = Credentials::Basic { username: "u".to_owned(), password: "wrong".to_owned() };
    let options = PullOptions { credentials, ..options(&[&registry, &tokens]) };
    assert!(matches!(pull(&registry, &options).await, Err(OciError::Unauthorized(_))));
}

#[tokio::test]
async fn tokens_do_not_come_from_where_users_must_not_reach() {
    let (registry, tokens) = with_tokens(None).await;
    let answer = pull(&registry, &options(&[&registry])).await;
    assert!(matches!(answer, Err(OciError::Protocol { .. })), "without TLS: {answer:?}");
    assert!(tokens.paths().is_empty());
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, body, expected) in [
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            "access denied to 'IMAGE': you don't have permission to pull this image",
        ),
        (403, "", "access denied to 'IMAGE': you don't have permission to pull this image"),
        (401, "", "access denied to 'IMAGE': authentication required or insufficient permissions"),
        (
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
            "repository 'IMAGE' not found: verify the image name is correct",
        ),
        (
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
            "image 'IMAGE' not found: the image or tag does not exist in the registry",
        ),
        (404, "<html>", "image 'IMAGE' not found: the image or tag does not exist in the registry"),
        (418, "", "failed to pull image 'IMAGE': registry returned status code 418"),
        (503, "", "failed to pull image 'IMAGE': registry returned status code 503"),
    ] {
        let registry = Server::start(move |_| answer(status, &[], body)).await;
        let error = pull(&registry, &options(&[&registry])).await.unwrap_err().to_string();
        assert_eq!(error, expected.replace("IMAGE", &format!("{}/a:v1", registry.host())));
        let attempts = match status {
            503 => 3,
            // And whether the repository is there.
            404 if error.starts_with("image") => 2,
            _ => 1,
        };
        assert_eq!(registry.paths().len(), attempts, "{status}");
    }
}

#[tokio::test]
async fn passing_failures_pass() {
    let content = Content::new();
    let layer = content.layer.clone();
    let trouble: Mutex<VecDeque<Answer>> = Mutex::default();
    trouble.lock().unwrap().extend([answer(429, &[], ""), answer(502, &[], "")]);
    let broken_off: Mutex<VecDeque<Answer>> = Mutex::default();
    broken_off.lock().unwrap().extend([broken(layer.slice(..70_000)), broken(layer.slice(..10))]);
    let layer_path = content.layer_path();
    let registry = Server::start(move |asked| {
        let queue = if asked.path == layer_path { &broken_off } else { &trouble };
        queue.lock().unwrap().pop_front().unwrap_or_else(|| content.answer(&asked.path))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let seen = Mutex::new(Vec::new());
    let reference = format!("{}/a:v1", registry.host()).parse().unwrap();
    let note = |progress: oci::Progress| {
        if progress.phase == Phase::Fetching {
            seen.lock().unwrap().push(progress);
        }
    };
    oci::pull(&store, &reference, &options(&[&registry]), &note).await.unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.last().unwrap().done, layer.len() as u64, "what failed is not counted");
    assert!(seen.iter().all(|progress| progress.total == layer.len() as u64));
}

#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let content = Arc::new(Content::new());
    let (behind, layer_path) = (Arc::clone(&content), content.layer_path());
    let storage = Server::start(move |asked| behind.answer(&asked.path)).await;
    let target = format!("http://{}/blob/{}", storage.host(), Digest::of(&content.layer).hex());
    let registry = Server::start(move |asked| match &asked.authorization {
        None => answer(401, &[("www-authenticate", "Basic realm=x")], ""),
        Some(_) if asked.path == layer_path => answer(307, &[("location", &target)], ""),
        Some(_) => content.answer(&asked.path),
    })
    .await;
    let credentials = Credentials::Basic { username: "u".to_owned(), password: "p".to_owned() };
    let mut options = PullOptions { credentials, ..options(&[&registry, &storage]) };
    pull(&registry, &options).await.unwrap();
    let asked = storage.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization, None);
    // To a host that the operator did not name.
    options.registries.insecure.remove(&storage.host());
    assert!(matches!(pull(&registry, &options).await, Err(OciError::Protocol { .. })));
    assert_eq!(storage.paths().len(), 1);
}

#[tokio::test]
async fn redirects_end() {
    let registry = Server::start(|asked| answer(302, &[("location", &asked.path)], "")).await;
    assert!(matches!(pull(&registry, &options(&[&registry])).await, Err(OciError::Protocol { .. })));
    assert_eq!(registry.paths().len(), 6);
}

#[tokio::test]
async fn lies_about_lengths_and_digests_are_found() {
    let content = Arc::new(Content::new());
    let layer_path = content.layer_path();
    for longer in [true, false] {
        let (content, layer_path) = (Arc::clone(&content), layer_path.clone());
        let registry = Server::start(move |asked| {
            if asked.path != layer_path {
                return content.answer(&asked.path);
            }
            let mut layer = content.layer.to_vec();
            if longer {
                layer.push(0);
            } else {
                layer[600] ^= 1;
            }
            answer(200, &[], layer)
        })
        .await;
        let error = pull(&registry, &options(&[&registry])).await.unwrap_err();
        let fits = if longer {
            matches!(error, OciError::Length { .. })
        } else {
            matches!(error, OciError::Damaged { .. })
        };
        assert!(fits, "{error}");
    }
    // A manifest that is not the one that was asked for.
    let registry = Server::start(move |asked| content.answer(&asked.path)).await;
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let reference = format!("{}/a@sha256:{}", registry.host(), "0".repeat(64)).parse().unwrap();
    let answer = oci::pull(&store, &reference, &options(&[&registry]), &|_| {}).await;
    assert!(matches!(answer, Err(OciError::Damaged { .. })), "{answer:?}");
}

#[tokio::test]
async fn endless_documents_are_not_taken() {
    let registry = Server::start(|_| answer(200, &[], vec![b' '; 9 << 20])).await;
    assert!(matches!(pull(&registry, &options(&[&registry])).await, Err(OciError::Protocol { .. })));
    let registry = Server::start(|_| answer(200, &[], "{}")).await;
    assert!(matches!(pull(&registry, &options(&[&registry])).await, Err(OciError::Malformed { .. })));
}

#[tokio::test]
async fn aws_keys_become_a_login() {
    let content = Content::new();
    let token = STANDARD.encode("AWS:a-password");
    let aws = Server::start(move |asked| {
        let authorization = asked.authorization.clone().unwrap_or_default();
        if !authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/") {
            return answer(
                400,
                &[],
                r#"{"__type":"UnrecognizedClientException","message":"The security token is invalid."}"#,
            );
        }
        answer(
            200,
            &[],
            format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}","proxyEndpoint":"x"}}]}}"#),
        )
    })
    .await;
    let wanted = basic("AWS", "a-password");
    let registry = Server::start(move |asked| {
        if asked.authorization == wanted {
            return content.answer(&asked.path);
        }
        answer(401, &[("www-authenticate", r#"Basic realm="https://x/",service="ecr.amazonaws.com""#)], "")
    })
    .await;
    let mut options = options(&[&registry]);
    options.registries.ecr_endpoint = Some(format!("http://{}", aws.host()).parse().unwrap());
    let key = |id: &str, region: &str| Credentials::Aws {
        access_key_id: id.to_owned(),
        secret_access_key: "secret".to_owned(),
        region: region.to_owned(),
    };
    options.credentials = key("AKID", "eu-central-1");
    pull(&registry, &options).await.unwrap();
    let asked = aws.asked.lock().unwrap()[0].clone();
    let header = |name: &str| asked.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-amz-target"), "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
    assert_eq!(header("content-type"), "application/x-amz-json-1.1");
    assert!(header("authorization").contains(
        "/eu-central-1/ecr/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, "
    ));
    options.credentials = key("OTHER", "eu-central-1");
    let error = pull(&registry, &options).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "no access token from AWS for region \"eu-central-1\": AWS answered 400 Bad Request: The security token is invalid."
    );
    options.credentials = key("AKID", "evil.example/#");
    assert!(matches!(pull(&registry, &options).await, Err(OciError::Aws { .. })));
}

#[tokio::test]
async fn giving_up_ends_everything() {
    let content = Content::new();
    let layer_path = content.layer_path();
    let half = content.layer.slice(..1000);
    // Never comes to an end.
    let registry = Server::start(move |asked| {
        if asked.path != layer_path {
            return content.answer(&asked.path);
        }
        let first = stream::iter([Ok(Frame::data(half.clone()))]);
        Response::new(StreamBody::new(futures::StreamExt::chain(first, stream::pending())).boxed_unsync())
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path()).unwrap();
    let reference = format!("{}/a:v1", registry.host()).parse().unwrap();
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    let note = move |progress: oci::Progress| {
        if progress.done >= 1000 {
            let _ = send.send(());
        }
    };
    let options = options(&[&registry]);
    let pull = oci::pull(&store, &reference, &options, &note);
    tokio::select! {
        answer = pull => panic!("{answer:?}"),
        _ = receive.recv() => {}
    }
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}
