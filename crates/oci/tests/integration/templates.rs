//! Templates go out and come back as the same layers; whatever is changed on the way is refused.
//! Needs root.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Registry, Store, describe, eventful, ignore, mode, run, set_xattr};
use layers::LayerDigest;
use oci::{ImportOptions, OciError, Template, export_template, import_image, import_template, make_portable};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

const CONFIG: &[u8] = br#"{"startCmd":"x"}"#;

fn import(store: &Store, path: &Path) -> Result<Template, OciError> {
    let answer = import_template(&store.store, path, &ImportOptions::default(), &ignore);
    store.is_tidy();
    answer
}

fn export(store: &Store, layers: &[LayerDigest]) -> Result<Vec<u8>, OciError> {
    let mut archive = Vec::new();
    let answer = export_template(&store.store, layers, CONFIG, &mut archive);
    store.is_tidy();
    answer.map(|_| archive)
}

fn layer(store: &Store, fill: impl FnOnce(&Path)) -> LayerDigest {
    let staging = store.store.stage().unwrap();
    fs::create_dir(staging.path()).unwrap();
    fill(&staging.path());
    store.store.add(&staging).unwrap()
}

fn node(path: PathBuf, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// All that a layer can hold.
fn odd(store: &Store) -> LayerDigest {
    layer(store, |root| {
        fs::create_dir_all(root.join("opaque/inner")).unwrap();
        set_xattr(&root.join("opaque"), "trusted.overlay.opaque", b"y");
        fs::create_dir(root.join("renamed")).unwrap();
        set_xattr(&root.join("renamed"), "trusted.overlay.redirect", b"/old/name");
        node(root.join("gone"), FileType::CharacterDevice, 0);
        fs::hard_link(root.join("gone"), root.join("opaque/gone too")).unwrap();
        node(root.join("null"), FileType::CharacterDevice, makedev(1, 3));
        node(root.join("disk"), FileType::BlockDevice, makedev(259, 70_000));
        node(root.join("pipe"), FileType::Fifo, 0);
        drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
        fs::write(root.join(".wh.really"), "a file").unwrap();
        fs::write(root.join(".wh..wh..opq"), "one more").unwrap();
        fs::write(root.join("file"), "x".repeat(100_000)).unwrap();
        set_xattr(&root.join("file"), "user.note", b"1\n2=3\0");
        fs::hard_link(root.join("file"), root.join("a-link")).unwrap();
        symlink("x".repeat(300), root.join("symlink")).unwrap();
        chown(root.join("file"), Some(65_535), Some(7)).unwrap();
        mode(&root.join("file"), 0o6755);
        set_xattr(
            &root.join("file"),
            "security.capability",
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        );
        let deep = root.join("deep/".to_owned() + &"d/".repeat(150));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("n".repeat(255)), "deep").unwrap();
        fs::create_dir(root.join("acl")).unwrap();
        run("setfacl", ["-m", "d:u:1000:rwx", root.join("acl").to_str().unwrap()]);
        fs::write(root.join("acl/file"), "inherits").unwrap();
        run("setfacl", ["-b", root.join("acl/file").to_str().unwrap()]);
        run("touch", ["-d", "1960-01-01 00:00:00.5 UTC", root.join("file").to_str().unwrap()]);
        mode(root, 0o750);
    })
}

#[test]
fn what_goes_out_comes_back() {
    let here = Store::new();
    let image = eventful();
    let image = import_image(&here.store, Path::new(&image.path()), None, &ImportOptions::default(), &ignore);
    let layers = [vec![odd(&here)], image.unwrap().layers].concat();
    let archive = export(&here, &layers).unwrap();
    assert!(archive == export(&here, &layers).unwrap(), "the same template gives the same archive");
    let path = here.dir.path().join("staging/archive.tar");
    fs::write(&path, &archive).unwrap();

    let there = Store::new();
    let template = import(&there, &path).unwrap();
    assert_eq!(template.layers, layers);
    assert_eq!(template.config, CONFIG);
    for layer in &layers {
        let (ours, theirs) = (describe(&here.store.path(layer)), describe(&there.store.path(layer)));
        for (path, text) in ours {
            // Whiteouts may share an inode, which means nothing.
            if !path.ends_with("gone") && !path.ends_with("gone too") {
                assert_eq!(Some(&text), theirs.get(&path), "{path}");
            }
        }
    }
    let odd = there.store.path(&layers[0]);
    assert!(fs::symlink_metadata(odd.join("socket")).unwrap().file_type().is_socket());
    assert_eq!(fs::symlink_metadata(odd.join("disk")).unwrap().rdev(), makedev(259, 70_000));
    assert!(
        archive == export(&there, &template.layers).unwrap(),
        "the archive of an imported template is the same"
    );
    // Real tools read the layout.
    let inspect = ["inspect", "--raw", &format!("oci-archive:{}", path.display())];
    let manifest = String::from_utf8(run("skopeo", inspect).stdout).unwrap();
    assert!(manifest.contains("application/vnd.cofferdam.template.config.v1+json"), "{manifest}");
    fs::remove_file(path).unwrap();
}

#[test]
fn oci_tools_carry_templates_to_a_registry_and_back() {
    let (here, there, registry) = (Store::new(), Store::new(), Registry::start());
    let layers = [odd(&here), layer(&here, |root| fs::write(root.join("below"), "x").unwrap())];
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    fs::write(file("out.tar"), export(&here, &layers).unwrap()).unwrap();
    let remote = format!("docker://{}/templates/one:v1", registry.host());
    let copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
    for (from, to) in [
        (format!("oci-archive:{}", file("out.tar")), remote.clone()),
        (remote, format!("oci-archive:{}", file("back.tar"))),
    ] {
        run("skopeo", copy.into_iter().chain([from.as_str(), to.as_str()]));
    }
    let template = import(&there, Path::new(&file("back.tar"))).unwrap();
    assert_eq!((template.layers.as_slice(), template.config.as_slice()), (&layers[..], CONFIG));
}

struct Unpacked(tempfile::TempDir);

impl Unpacked {
    /// An exported template as a directory, to be changed.
    fn new() -> Self {
        let store = Store::new();
        let layers = [
            layer(&store, |root| fs::write(root.join("top"), "top").unwrap()),
            layer(&store, |root| fs::write(root.join("file"), "x".repeat(10_000)).unwrap()),
        ];
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tar"), export(&store, &layers).unwrap()).unwrap();
        let layout = dir.path().join("layout");
        fs::create_dir(&layout).unwrap();
        let tar = dir.path().join("a.tar");
        run("tar", ["--extract", "--file", tar.to_str().unwrap(), "--directory", layout.to_str().unwrap()]);
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("layout")
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path().join(name)).unwrap()).unwrap()
    }

    fn blob(digest: &serde_json::Value) -> String {
        format!("blobs/sha256/{}", digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    }

    fn manifest(&self) -> serde_json::Value {
        self.json(&Self::blob(&self.json("index.json")["manifests"][0]["digest"]))
    }

    /// Puts a changed manifest in place, with right digests.
    fn set_manifest(&self, manifest: &serde_json::Value) {
        let text = manifest.to_string();
        let digest = oci::Digest::of(text.as_bytes());
        fs::write(self.path().join("blobs/sha256").join(digest.hex()), &text).unwrap();
        let mut index = self.json("index.json");
        index["manifests"][0]["digest"] = digest.to_string().into();
        index["manifests"][0]["size"] = text.len().into();
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }
}

#[test]
fn every_hash_is_verified_before_anything_is_kept() {
    let good = Unpacked::new();
    let store = Store::new();
    // The lower layer is fine, the upper one is not; neither is kept.
    for note in ["dev.cofferdam.layer-digest", "dev.cofferdam.diff-id"] {
        let template = Unpacked::new();
        let mut manifest = template.manifest();
        manifest["layers"][1]["annotations"][note] = manifest["layers"][0]["annotations"][note].clone();
        template.set_manifest(&manifest);
        assert!(matches!(import(&store, &template.path()), Err(OciError::Damaged { .. })), "{note}");
        manifest["layers"][1]["annotations"].as_object_mut().unwrap().remove(note);
        template.set_manifest(&manifest);
        assert!(matches!(import(&store, &template.path()), Err(OciError::Malformed { .. })), "{note}");
    }
    let manifest = good.manifest();
    let manifest_name = Unpacked::blob(&good.json("index.json")["manifests"][0]["digest"]);
    let names = [
        Unpacked::blob(&manifest["layers"][0]["digest"]),
        Unpacked::blob(&manifest["layers"][1]["digest"]),
        Unpacked::blob(&manifest["config"]["digest"]),
        manifest_name,
    ];
    for name in names {
        let path = good.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[7] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(matches!(import(&store, &good.path()), Err(OciError::Damaged { .. })), "{}", path.display());
        fs::write(&path, &whole[1..]).unwrap();
        assert!(matches!(import(&store, &good.path()), Err(OciError::Length { .. })), "{}", path.display());
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(store.count(), 0);
    import(&store, &good.path()).unwrap();
    assert_eq!(store.count(), 2);
}

#[test]
fn a_cut_off_archive_is_no_template() {
    let template = Unpacked::new();
    let whole = fs::read(template.0.path().join("a.tar")).unwrap();
    let store = Store::new();
    let path = template.0.path().join("cut.tar");
    // Zeros at the end say nothing.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for cut in (0..end).step_by(97).chain([end]) {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(import(&store, &path).is_err(), "{cut}");
    }
    assert_eq!(store.count(), 0);
}

#[test]
fn other_formats_are_told() {
    let store = Store::new();
    let template = Unpacked::new();
    let manifest = template.manifest();
    let mut newer = manifest.clone();
    newer["artifactType"] = "application/vnd.cofferdam.template.v2".into();
    template.set_manifest(&newer);
    let error = import(&store, &template.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "holds a template of format \"application/vnd.cofferdam.template.v2\", and this server reads \
             \"application/vnd.cofferdam.template.v1\"; use a matching version of Cofferdam"
        ),
        "{error}"
    );
    let mut layer = manifest.clone();
    layer["layers"][0]["mediaType"] = "application/vnd.cofferdam.template.layer.v9".into();
    template.set_manifest(&layer);
    assert!(matches!(import(&store, &template.path()), Err(OciError::TemplateVersion { .. })));
    // An image is no template, and a template is no image.
    let image = eventful();
    assert!(matches!(import(&store, Path::new(&image.path())), Err(OciError::NoTemplate(_))));
    template.set_manifest(&manifest);
    let answer = import_image(&store.store, &template.path(), None, &ImportOptions::default(), &ignore);
    assert!(answer.is_err());
}

#[test]
fn limits_hold_for_templates() {
    let store = Store::new();
    let template = Unpacked::new();
    let mut options = ImportOptions::default();
    options.limits.size = 8000;
    let answer = import_template(&store.store, &template.path(), &options, &ignore);
    assert!(matches!(answer, Err(OciError::TooLarge { .. })));
    store.is_tidy();
    assert_eq!(store.count(), 0);
}

#[test]
fn what_cannot_come_back_does_not_go_out() {
    let store = Store::new();
    type Fill = Box<dyn Fn(&Path)>;
    let cases: [(&str, Fill); 5] = [
        ("an overlay's note", Box::new(|root| set_xattr(&root.join("f"), "trusted.overlay.origin", b"x"))),
        ("an id", Box::new(|root| chown(root.join("f"), Some(70_000), None).unwrap())),
        ("a label", Box::new(|root| set_xattr(&root.join("f"), "trusted.other", b"x"))),
        ("a long whiteout", Box::new(|root| node(root.join("n".repeat(252)), FileType::CharacterDevice, 0))),
        ("a deep tree", Box::new(|root| fs::create_dir_all(root.join("d/".repeat(201))).unwrap())),
    ];
    for (what, fill) in cases {
        let layer = layer(&store, |root| {
            fs::write(root.join("f"), "x").unwrap();
            fill(root);
        });
        assert!(matches!(export(&store, &[layer]), Err(OciError::NotPortable { .. })), "{what}");
    }
    let missing: LayerDigest = "0".repeat(64).parse().unwrap();
    assert!(matches!(export(&store, &[missing]), Err(OciError::Io { .. })));
}

#[test]
fn an_upper_becomes_portable() {
    let store = Store::new();
    let upper = |notes: bool| {
        let staging = store.store.stage().unwrap();
        let root = staging.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/f"), "x").unwrap();
        set_xattr(&root.join("a"), "trusted.overlay.opaque", b"y");
        if notes {
            set_xattr(&root, "trusted.overlay.impure", b"y");
            set_xattr(&root, "trusted.overlay.uuid", &[7; 16]);
            set_xattr(&root.join("a/b"), "trusted.overlay.origin", b"a handle");
            set_xattr(&root.join("a/b/f"), "trusted.overlay.nlink", b"U+1");
        }
        make_portable(&root).unwrap();
        store.store.add(&staging).unwrap()
    };
    let plain = upper(false);
    assert_eq!(upper(true), plain);
    export(&store, &[plain]).unwrap();
    let staging = store.store.stage().unwrap();
    fs::create_dir(staging.path()).unwrap();
    fs::write(staging.path().join("f"), "").unwrap();
    set_xattr(&staging.path().join("f"), "trusted.overlay.metacopy", b"");
    assert!(matches!(make_portable(&staging.path()), Err(OciError::NotPortable { .. })));
}

#[test]
fn the_writers_failure_is_an_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let store = Store::new();
    let mut noise = vec![0; 100_000];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let layer = layer(&store, |root| fs::write(root.join("f"), noise).unwrap());
    let answer = export_template(&store.store, &[layer], CONFIG, Full(50_000));
    assert!(matches!(answer, Err(OciError::Io { .. })));
    store.is_tidy();
}
