//! Images from archives that real tools wrote, and from such that somebody tampered with.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::common::{Layout, Store, describe, eventful, ignore, pair, run};
use oci::{Image, ImportOptions, OciError, import_image};

fn import(store: &Store, path: impl AsRef<Path>, name: Option<&str>) -> Result<Image, OciError> {
    let answer = import_image(&store.store, path.as_ref(), name, &ImportOptions::default(), &ignore);
    store.is_tidy();
    answer
}

#[test]
fn every_kind_of_archive_is_the_same_image() {
    let layout = eventful();
    let file = |name: &str| layout.dir.path().join(name);
    layout.copy_to(&format!("oci-archive:{}", file("oci.tar").display()), &[]);
    layout.copy_to(&format!("docker-archive:{}:some/name:v1", file("docker.tar").display()), &[]);
    for name in ["oci.tar", "docker.tar"] {
        run("gzip", ["--keep", file(name).to_str().unwrap()]);
    }
    let store = Store::new();
    let whole = import(&store, layout.path(), None).unwrap();
    assert_eq!(whole.env, [pair("PATH", "/bin")]);
    assert_eq!(whole.digest.to_string(), layout.manifest().0);
    assert_eq!(describe(&store.mount(&whole.layers).path(".")), describe(&layout.unpacked_by_umoci()));
    for name in ["oci.tar", "docker.tar", "oci.tar.gz", "docker.tar.gz"] {
        let store = Store::new();
        assert_eq!(import(&store, file(name), None).unwrap().layers, whole.layers, "{name}");
        assert_eq!(import(&store, file(name), None).unwrap().layers, whole.layers, "{name} again");
    }
}

#[test]
fn one_of_several_images_is_named() {
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("one"), "1").unwrap());
    let one = layout.manifest().0;
    layout.umoci(["tag", "--image", &layout.image(), "other"]);
    layout.layer(|root| fs::write(root.join("two"), "2").unwrap());
    let store = Store::new();
    let error = import(&store, layout.path(), None).unwrap_err();
    assert!(matches!(&error, OciError::SeveralImages { names, .. } if names == &["other", "tag"]), "{error}");
    assert_eq!(import(&store, layout.path(), Some("other")).unwrap().digest.to_string(), one);
    assert_eq!(import(&store, layout.path(), Some("tag")).unwrap().layers.len(), 2);
    let error = import(&store, layout.path(), Some("third")).unwrap_err();
    assert!(matches!(error, OciError::NoSuchImage { .. }));

    let archive = layout.dir.path().join("docker.tar");
    layout.copy_to(&format!("docker-archive:{}:some/name:v1", archive.display()), &[]);
    import(&store, &archive, Some("docker.io/some/name:v1")).unwrap();
    assert!(matches!(import(&store, &archive, Some("some/name:v2")), Err(OciError::NoSuchImage { .. })));
}

/// Writes what the layout's index names.
fn set_manifest(layout: &Layout, change: impl FnOnce(&mut serde_json::Value)) {
    let (_, mut manifest) = layout.manifest();
    change(&mut manifest);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = layout.put_blob(kind, manifest.to_string().as_bytes());
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
    fs::write(layout.dir.path().join("layout/index.json"), index.to_string()).unwrap();
}

/// An image of these tars, lowermost first.
fn hand_made(tars: &[&[u8]]) -> Layout {
    let layout = Layout::new();
    let layers: Vec<_> = tars.iter().map(|tar| layout.put_blob("layer", tar)).collect();
    let ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = serde_json::json!({ "os": "linux", "architecture": oci::host_architecture(),
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = layout.put_blob("config", config.to_string().as_bytes());
    set_manifest(&layout, |manifest| {
        manifest["config"] = config;
        manifest["layers"] = layers.into();
    });
    layout
}

fn tar(entries: &[(&str, tar::EntryType, u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, mode) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        tar.append_data(&mut header, name, &[][..]).unwrap();
    }
    tar.into_inner().unwrap()
}

use tar::EntryType::{Directory, Regular};

#[test]
fn a_layer_without_its_parents_is_known_upon_its_base_only() {
    let above = tar(&[("tmp/file", Regular, 0o600)]);
    let bases = [0o1777, 0o750].map(|mode| tar(&[("tmp", Directory, mode)]));
    let store = Store::new();
    for _ in 0..2 {
        for (base, mode) in bases.iter().zip([0o41777, 0o40750]) {
            let image = import(&store, hand_made(&[base, &above]).path(), None).unwrap();
            let metadata = fs::metadata(store.mount(&image.layers).path("tmp")).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::mode(&metadata), mode);
        }
    }
    assert_eq!(store.count(), 4);
}

#[test]
fn a_layer_that_is_there_twice_is_mounted_once() {
    let one = tar(&[("d", Directory, 0o755), ("d/one", Regular, 0o600), ("d/.wh.two", Regular, 0)]);
    let two = tar(&[("d", Directory, 0o755), ("d/two", Regular, 0o600), ("d/.wh.one", Regular, 0)]);
    let store = Store::new();
    let image = import(&store, hand_made(&[&one, &two, &one]).path(), None).unwrap();
    assert_eq!(image.layers.len(), 2);
    let overlay = store.mount(&image.layers);
    assert!(overlay.path("d/one").exists() && !overlay.path("d/two").exists());
}

#[test]
fn an_opaque_root_hides_all_below() {
    let below = tar(&[("old", Regular, 0o600)]);
    let above = tar(&[(".wh..wh..opq", Regular, 0), ("new", Regular, 0o600)]);
    let store = Store::new();
    let image = import(&store, hand_made(&[&below, &above]).path(), None).unwrap();
    let overlay = store.mount(&image.layers);
    assert!(overlay.path("new").exists() && !overlay.path("old").exists());
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let layout = Layout::new();
    layout.layer(|root| fs::write(root.join("file"), "x".repeat(1000)).unwrap());
    let store = Store::new();
    let (_, manifest) = layout.manifest();
    let config_text =
        fs::read_to_string(layout.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config_text).unwrap();
    let kind = "application/vnd.oci.image.config.v1+json";

    // Another diff id: a layer must not get into the notes under a name that is not its own.
    config["rootfs"]["diff_ids"][0] = format!("sha256:{}", "1".repeat(64)).into();
    let wrong = layout.put_blob(kind, config.to_string().as_bytes());
    set_manifest(&layout, |manifest| manifest["config"] = wrong);
    let error = import(&store, layout.path(), None).unwrap_err();
    assert!(matches!(&error, OciError::Damaged { expected, .. } if expected.ends_with("1111")), "{error}");

    config["rootfs"]["diff_ids"] = serde_json::json!([]);
    let none = layout.put_blob(kind, config.to_string().as_bytes());
    set_manifest(&layout, |manifest| manifest["config"] = none);
    assert!(matches!(import(&store, layout.path(), None), Err(OciError::Malformed { .. })));

    let right = layout.put_blob(kind, config_text.as_bytes());
    set_manifest(&layout, |manifest| manifest["config"] = right);
    let layer = layout.blob(manifest["layers"][0]["digest"].as_str().unwrap());
    let whole = fs::read(&layer).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    fs::write(&layer, flipped).unwrap();
    assert!(matches!(import(&store, layout.path(), None), Err(OciError::Damaged { .. })));
    fs::write(&layer, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(import(&store, layout.path(), None), Err(OciError::Length { .. })));
    fs::remove_file(&layer).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &layer).unwrap();
    assert!(import(&store, layout.path(), None).is_err(), "a link out of the layout was followed");
    fs::remove_file(&layer).unwrap();
    assert!(matches!(import(&store, layout.path(), None), Err(OciError::Malformed { .. })));
    assert_eq!(store.count(), 0);
    fs::write(&layer, &whole).unwrap();
    import(&store, layout.path(), None).unwrap();
}

#[test]
fn what_is_no_archive_is_told() {
    let store = Store::new();
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(import(&store, dir.path(), None), Err(OciError::NoImage(_))));
    let file = dir.path().join("file");
    File::create(&file).unwrap().write_all(&[7; 5000]).unwrap();
    assert!(matches!(import(&store, &file, None), Err(OciError::Malformed { .. })));
    run("tar", ["--create", "--file", dir.path().join("a.tar").to_str().unwrap(), file.to_str().unwrap()]);
    let error = import(&store, dir.path().join("a.tar"), None).unwrap_err();
    assert!(matches!(error, OciError::NoImage(_)), "{error}");
    assert!(matches!(import(&store, dir.path().join("missing"), None), Err(OciError::Io { .. })));
}

#[test]
fn a_compressed_archive_is_held_to_the_limit() {
    let store = Store::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.gz");
    fs::write(dir.path().join("bomb"), vec![0; 40 << 20]).unwrap();
    run("gzip", [dir.path().join("bomb").to_str().unwrap()]);
    let mut options = ImportOptions::default();
    options.limits.size = 1 << 20;
    let answer = import_image(&store.store, &path, None, &options, &ignore);
    assert!(matches!(answer, Err(OciError::TooLarge { .. })), "{answer:?}");
    store.is_tidy();
}

#[test]
fn an_import_can_be_cancelled() {
    let layout = eventful();
    let store = Store::new();
    let options = ImportOptions::default();
    options.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    let answer = import_image(&store.store, Path::new(&layout.path()), None, &options, &ignore);
    assert!(matches!(answer, Err(OciError::Cancelled)), "{answer:?}");
    store.is_tidy();
    assert_eq!(store.count(), 0);
}
