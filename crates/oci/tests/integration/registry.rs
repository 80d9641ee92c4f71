//! Pulls from a real registry, of images that real tools made.
//! The layers are mounted and compared with what umoci unpacks of the same image.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::Mutex;

use crate::common::{Layout, Registry, Store, describe, eventful, pair};
use oci::{Credentials, Limits, OciError, Phase, PullOptions};

#[tokio::test]
async fn layers_show_what_umoci_unpacks() {
    let registry = Registry::start();
    let layout = eventful();
    layout.push(&registry, "some/image:v1");
    let store = Store::new();
    let image = store.pull(&registry.reference("some/image:v1"), &registry.options()).await.unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.env, [pair("PATH", "/bin")]);
    assert_eq!(image.config["config"]["User"], "1000");
    assert_eq!(image.digest.to_string(), layout.manifest().0);
    assert!(image.warnings.is_empty(), "{:?}", image.warnings);
    let overlay = store.mount(&image.layers);
    let (ours, theirs) = (describe(&overlay.path(".")), describe(&layout.unpacked_by_umoci()));
    assert!(theirs.len() > 20);
    similar(&ours, &theirs);
}

fn similar(
    ours: &std::collections::BTreeMap<String, String>,
    theirs: &std::collections::BTreeMap<String, String>,
) {
    for path in ours.keys().chain(theirs.keys()) {
        assert_eq!(ours.get(path), theirs.get(path), "{path}");
    }
}

#[tokio::test]
async fn docker_manifests_and_zstd_layers_are_the_same_image() {
    let registry = Registry::start();
    let layout = eventful();
    let host = registry.host();
    layout.copy_to(&format!("docker://{host}/a:docker"), &["--format", "v2s2"]);
    layout
        .copy_to(&format!("docker://{host}/a:zstd"), &["--dest-compress-format", "zstd", "--dest-compress"]);
    let one = Store::new();
    let docker = one.pull(&registry.reference("a:docker"), &registry.options()).await.unwrap();
    let other = Store::new();
    let zstd = other.pull(&registry.reference("a:zstd"), &registry.options()).await.unwrap();
    assert_eq!(docker.layers, zstd.layers);
    assert_ne!(docker.digest, zstd.digest);
    similar(&describe(&one.mount(&docker.layers).path(".")), &describe(&other.mount(&zstd.layers).path(".")));
}

#[tokio::test]
async fn layers_are_fetched_once_in_each_scope() {
    let registry = Registry::start();
    let layout = eventful();
    layout.push(&registry, "a:one");
    let store = Store::new();
    let mut options = registry.options();
    let first = store.pull(&registry.reference("a:one"), &options).await.unwrap();
    // The registry has the layers no more.
    let layers: Vec<String> = layout.manifest().1["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["digest"].as_str().unwrap().to_owned())
        .collect();
    layout.layer(|root| fs::write(root.join("more"), "more").unwrap()).push(&registry, "a:two");
    layers.iter().for_each(|digest| fs::remove_file(registry.blob(digest)).unwrap());
    let seen = Mutex::new(Vec::new());
    let note = |progress| seen.lock().unwrap().push(progress);
    let second = oci::pull(&store.store, &registry.reference("a:two"), &options, &note).await.unwrap();
    assert_eq!(second.layers[1..], first.layers);
    let seen = seen.into_inner().unwrap();
    let fetched: Vec<_> = seen.iter().filter(|progress| progress.phase == Phase::Fetching).collect();
    let new = layout.manifest().1["layers"][3]["size"].as_u64().unwrap();
    assert!(fetched.iter().all(|progress| progress.total == new));
    assert_eq!(fetched.last().unwrap().done, new);
    let unpacked: Vec<_> =
        seen.iter().filter(|p| p.phase == Phase::Unpacking).map(|p| (p.done, p.total)).collect();
    assert_eq!(unpacked, [(3, 4), (4, 4)]);
    // Limits hold for what is known, too.
    options.limits.size = 4096;
    let answer = store.pull(&registry.reference("a:two"), &options).await;
    assert!(matches!(answer, Err(OciError::TooLarge { .. })));
    options.limits = Limits::default();
    options.scope = "another team".to_owned();
    let answer = store.pull(&registry.reference("a:two"), &options).await;
    assert!(matches!(answer, Err(OciError::ImageNotFound(_))), "{answer:?}");
}

#[tokio::test]
async fn only_images_for_this_machine_are_taken() {
    let registry = Registry::start();
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("file"), "x").unwrap()).push(&registry, "a:amd64");
    let entry = |layout: &Layout, architecture: &str, os: &str| {
        let (digest, _) = layout.manifest();
        let size = fs::metadata(layout.blob(&digest)).unwrap().len();
        serde_json::json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": { "architecture": architecture, "os": os } })
    };
    let ours = entry(&layout, "amd64", "linux");
    layout.config(&["--architecture", "arm64"]).push(&registry, "a:arm64");
    let theirs = entry(&layout, "arm64", "linux");
    let index = |list: &[&serde_json::Value]| {
        serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list })
            .to_string()
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    registry.put_manifest("a", "only-arm", kind, &index(&[&theirs]));
    registry.put_manifest("a", "both", kind, &index(&[&theirs, &ours]));
    let store = Store::new();
    let mut options = PullOptions { architecture: "amd64".to_owned(), ..registry.options() };
    for tag in ["a:arm64", "a:only-arm"] {
        let error = store.pull(&registry.reference(tag), &options).await.unwrap_err();
        assert_eq!(error.to_string(), r#"image architecture "arm64" does not match expected "amd64""#);
    }
    let image = store.pull(&registry.reference("a:both"), &options).await.unwrap();
    assert_eq!(image.digest.to_string(), ours["digest"].as_str().unwrap());
    options.architecture = "arm64".to_owned();
    let image = store.pull(&registry.reference("a:both"), &options).await.unwrap();
    assert_eq!(image.digest.to_string(), theirs["digest"].as_str().unwrap());
    // Pinned to the manifest of the other architecture.
    options.architecture = "amd64".to_owned();
    let pinned = format!("a@{}", theirs["digest"].as_str().unwrap());
    let answer = store.pull(&registry.reference(&pinned), &options).await;
    assert!(matches!(answer, Err(OciError::Architecture { .. })));
}

#[tokio::test]
async fn logins_are_checked_by_the_registry() {
    let registry = Registry::with_login("alice", "opensesame");
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("file"), "x").unwrap());
    layout.copy_to(&format!("docker://{}/a:v1", registry.host()), &["--dest-creds", "alice:opensesame"]);
    let store = Store::new();
    let reference = registry.reference("a:v1");
    let mut options = registry.options();
    let denied = format!(
        "access denied to '{}': authentication required or insufficient permissions",
        reference.as_given()
    );
    assert_eq!(store.pull(&reference, &options).await.unwrap_err().to_string(), denied);
    let login =
        |password: &str| Credentials::Basic { username: "alice".to_owned(), password: password.to_owned() };
    options.credentials = login("wrong");
    assert_eq!(store.pull(&reference, &options).await.unwrap_err().to_string(), denied);
    options.credentials = login("opensesame");
    store.pull(&reference, &options).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let registry = Registry::start();
    Layout::new().layer(|root| fs::write(root.join("file"), "x").unwrap()).push(&registry, "a:v1");
    let store = Store::new();
    let error = async |image: &str| {
        let answer = store.pull(&registry.reference(image), &registry.options()).await;
        answer.unwrap_err().to_string()
    };
    let host = registry.host();
    assert_eq!(
        error("a:v2").await,
        format!("image '{host}/a:v2' not found: the image or tag does not exist in the registry")
    );
    assert_eq!(
        error("no/such:v1").await,
        format!("repository '{host}/no/such:v1' not found: verify the image name is correct")
    );
    let missing = format!("a@sha256:{}", "0".repeat(64));
    assert_eq!(
        error(&missing).await,
        format!("image '{host}/{missing}' not found: the image or tag does not exist in the registry")
    );
}

#[tokio::test]
async fn damaged_blobs_are_not_unpacked() {
    let registry = Registry::start();
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("file"), "x".repeat(10_000)).unwrap()).push(&registry, "a:v1");
    let digest = layout.manifest().1["layers"][0]["digest"].as_str().unwrap().to_owned();
    let blob = registry.blob(&digest);
    let whole = fs::read(&blob).unwrap();
    let store = Store::new();

    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&blob, flipped).unwrap();
    let error = store.pull(&registry.reference("a:v1"), &registry.options()).await.unwrap_err();
    assert!(matches!(&error, OciError::Damaged { expected, .. } if *expected == digest), "{error}");

    fs::write(&blob, &whole[..whole.len() - 5]).unwrap();
    let error = store.pull(&registry.reference("a:v1"), &registry.options()).await.unwrap_err();
    assert!(matches!(error, OciError::Length { .. }), "{error}");

    fs::write(&blob, [&whole[..], b"more"].concat()).unwrap();
    let error = store.pull(&registry.reference("a:v1"), &registry.options()).await.unwrap_err();
    assert!(matches!(error, OciError::Length { .. }), "{error}");
    assert_eq!(store.count(), 0);

    fs::write(&blob, &whole).unwrap();
    store.pull(&registry.reference("a:v1"), &registry.options()).await.unwrap();
}

#[tokio::test]
async fn a_bomb_ends_at_the_limit() {
    let registry = Registry::start();
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("zeros"), vec![0; 100 << 20]).unwrap()).push(&registry, "a:v1");
    let packed = layout.manifest().1["layers"][0]["size"].as_u64().unwrap();
    let store = Store::new();
    let mut options = registry.options();
    options.limits.size = 10 << 20;
    assert!(packed < options.limits.size / 10);
    let error = store.pull(&registry.reference("a:v1"), &options).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the uncompressed Docker image size (at least 11 MB) exceeds the maximum filesystem size (10 MB). \
         Please reduce the image's size, or use a smaller base image."
    );
    assert_eq!(store.count(), 0);
    // Not even the compressed form is fetched if that is too much.
    options.limits.size = packed - 1;
    let error = store.pull(&registry.reference("a:v1"), &options).await.unwrap_err();
    assert!(matches!(error, OciError::TooLarge { size, .. } if size == packed));
}

#[tokio::test]
async fn a_mirror_is_asked_instead() {
    let registry = Registry::start();
    let layout = Layout::new();
    layout
        .layer(|root| fs::write(root.join("file"), "x").unwrap())
        .push(&registry, "hub/library/debian:latest");
    let mut options = PullOptions::default();
    let mirror = format!("http://{}/hub", registry.host()).parse().unwrap();
    options.registries.mirrors.insert("docker.io".to_owned(), mirror);
    let store = Store::new();
    store.pull(&"debian".parse().unwrap(), &options).await.unwrap();
    let error = store.pull(&"debian:other".parse().unwrap(), &options).await.unwrap_err();
    assert!(matches!(error, OciError::ImageNotFound(image) if image == "debian:other"));
}

#[tokio::test]
async fn what_cannot_be_reached_is_named_with_a_remedy() {
    let registry = Registry::start();
    let mut options = registry.options();
    let host = registry.host();
    let mirror = format!("http://{host}").parse().unwrap();
    options.registries.mirrors.insert("ghcr.io".to_owned(), mirror);
    let own = registry.reference("a");
    drop(registry);
    let store = Store::new();
    let error = store.pull(&own, &options).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("registry {host} cannot be reached: ")), "{error}");
    assert!(error.contains(&format!("serve --registry-mirror {host}=https://…")), "{error}");
    let error = store.pull(&"ghcr.io/a/b".parse().unwrap(), &options).await.unwrap_err().to_string();
    assert!(
        error.starts_with("registry ghcr.io cannot be reached: its mirror: ") && !error.contains(&host),
        "{error}"
    );
    assert!(error.contains("cofferdam template import"), "{error}");
    // Not named by the operator, and so not tried.
    let error = store.pull(&own, &PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, OciError::NoAddress { is_internal: true, .. }), "{error}");
}

#[tokio::test]
async fn several_pulls_at_a_time_do_not_disturb_each_other() {
    let registry = Registry::start();
    eventful().push(&registry, "a:v1");
    let store = Store::new();
    let pulls = (0..4).map(|_| {
        let (store, reference, options) =
            (store.store.clone(), registry.reference("a:v1"), registry.options());
        tokio::spawn(async move { oci::pull(&store, &reference, &options, &|_| {}).await.unwrap().layers })
    });
    let layers = futures::future::try_join_all(pulls).await.unwrap();
    assert!(layers.iter().all(|list| *list == layers[0]));
    store.is_tidy();
    assert_eq!(store.count(), 3);
}

/// Set for the second run of the test, which trusts the registry: the certificates are the process' own.
const TRUSTED: &str = "TESTS_TRUSTED_REGISTRY";

#[tokio::test]
async fn certificates_are_verified() {
    let store = Store::new();
    let mut options = PullOptions::default();
    options.registries.allowed.push("127.0.0.0/8".parse().unwrap());
    if let Ok(host) = std::env::var(TRUSTED) {
        store.pull(&format!("{host}/a:v1").parse().unwrap(), &options).await.unwrap();
        let error = store.pull(&format!("{host}/a:v2").parse().unwrap(), &options).await.unwrap_err();
        assert!(matches!(error, OciError::ImageNotFound(_)), "{error}");
        return;
    }
    let (registry, certificate) = Registry::with_tls();
    Layout::new().layer(|root| fs::write(root.join("file"), "x").unwrap()).push(&registry, "a:v1");
    let error = store.pull(&registry.reference("a:v1"), &options).await.unwrap_err();
    assert!(matches!(&error, OciError::Unreachable { why, .. } if why.contains("certificate")), "{error}");
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::certificates_are_verified"])
        .env("SSL_CERT_FILE", certificate)
        .env(TRUSTED, registry.host())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
}
