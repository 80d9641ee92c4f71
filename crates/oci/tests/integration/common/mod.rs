//! Real tools: Debian's registry on a port of its own, images made with umoci and moved with skopeo.
//! Everything is below one temporary directory; the registry ends with its value.
//! Overlays are detached mounts that end with their descriptor.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use layers::{LayerDigest, LayerStore};
use oci::{Digest, Image, OciError, Progress, PullOptions, Reference, Registries};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use tempfile::TempDir;

pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Debian's `docker-registry`.
pub struct Registry {
    child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::with(tempfile::tempdir().unwrap(), "", "")
    }

    pub fn with_login(name: &str, password: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, run("htpasswd", ["-Bbn", name, password]).stdout).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display());
        Self::with(dir, "", &auth)
    }

    /// Speaks TLS, with a certificate that nobody trusts; it is in the second value.
    pub fn with_tls() -> (Self, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let extensions = "[req]\ndistinguished_name=n\nx509_extensions=x\n[n]\n[x]\nbasicConstraints=CA:FALSE\n\
                          subjectAltName=IP:127.0.0.1\n";
        fs::write(file("openssl.cnf"), extensions).unwrap();
        let (config, key, certificate) = (file("openssl.cnf"), file("key"), file("certificate"));
        let curve =
            ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=registry"];
        let files = ["-config", &config, "-keyout", &key, "-out", &certificate];
        run("openssl", ["req", "-x509"].into_iter().chain(curve).chain(files));
        let tls = format!(", tls: {{certificate: {certificate}, key: {key}}}");
        (Self::with(dir, &tls, ""), certificate.into())
    }

    fn with(dir: TempDir, http: &str, more: &str) -> Self {
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0', secret: x{http}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n{more}",
            dir.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, port, dir }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn reference(&self, image: &str) -> Reference {
        format!("{}/{image}", self.host()).parse().unwrap()
    }

    pub fn options(&self) -> PullOptions {
        let mut registries = Registries::default();
        registries.insecure.insert(self.host());
        PullOptions { registries, ..PullOptions::default() }
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Puts a manifest under a tag.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, text: &str) {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host());
        let kind = format!("Content-Type: {media_type}");
        run("curl", ["-sSf", "-X", "PUT", "-H", &kind, "--data-binary", text, &url]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout with one image, made layer by layer with umoci.
pub struct Layout {
    pub dir: TempDir,
}

impl Layout {
    pub fn new() -> Self {
        let layout = Self { dir: tempfile::tempdir().unwrap() };
        layout.umoci(["init", "--layout", &layout.path()]);
        layout.umoci(["new", "--image", &layout.image()]);
        layout.umoci(["unpack", "--image", &layout.image(), &layout.bundle()]);
        layout
    }

    pub fn path(&self) -> String {
        self.dir.path().join("layout").to_str().unwrap().to_owned()
    }

    pub fn image(&self) -> String {
        format!("{}:tag", self.path())
    }

    fn bundle(&self) -> String {
        self.dir.path().join("bundle").to_str().unwrap().to_owned()
    }

    pub fn umoci<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) {
        run("umoci", arguments);
    }

    /// A new layer of what is changed in the directory.
    pub fn layer(&self, change: impl FnOnce(&Path)) -> &Self {
        change(&self.dir.path().join("bundle/rootfs"));
        self.umoci(["repack", "--refresh-bundle", "--image", &self.image(), &self.bundle()]);
        self
    }

    pub fn config(&self, arguments: &[&str]) -> &Self {
        self.umoci(["config", "--image", &self.image()].into_iter().chain(arguments.iter().copied()));
        self
    }

    /// Copies the image elsewhere, in skopeo's terms.
    pub fn copy_to(&self, target: &str, arguments: &[&str]) {
        let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        let from = format!("oci:{}", self.image());
        run("skopeo", copy.into_iter().chain(arguments.iter().copied()).chain([from.as_str(), target]));
    }

    pub fn push(&self, registry: &Registry, name: &str) -> &Self {
        self.copy_to(&format!("docker://{}/{name}", registry.host()), &[]);
        self
    }

    /// The manifest in force.
    pub fn manifest(&self) -> (String, serde_json::Value) {
        let index = fs::read(self.dir.path().join("layout/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let manifest = serde_json::from_slice(&fs::read(self.blob(&digest)).unwrap()).unwrap();
        (digest, manifest)
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.path().join("layout/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Writes a blob and gives its descriptor.
    pub fn put_blob(&self, media_type: &str, content: &[u8]) -> serde_json::Value {
        let digest = Digest::of(content).to_string();
        fs::write(self.blob(&digest), content).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// What umoci makes of the image.
    pub fn unpacked_by_umoci(&self) -> PathBuf {
        let bundle = self.dir.path().join("fresh");
        self.umoci(["unpack", "--image", &self.image(), bundle.to_str().unwrap()]);
        bundle.join("rootfs")
    }
}

/// A layer store of one test.
pub struct Store {
    pub dir: TempDir,
    pub store: LayerStore,
    empty: TempDir,
}

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: LayerStore::open(dir.path()).unwrap(), dir, empty: tempfile::tempdir().unwrap() }
    }

    pub async fn pull(&self, reference: &Reference, options: &PullOptions) -> Result<Image, OciError> {
        let answer = oci::pull(&self.store, reference, options, &|_| {}).await;
        self.is_tidy();
        answer
    }

    /// Nothing is left of what was under way.
    pub fn is_tidy(&self) {
        assert_eq!(fs::read_dir(self.dir.path().join("staging")).unwrap().count(), 0, "staging is not empty");
    }

    /// Layers there are.
    pub fn count(&self) -> usize {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().parse::<LayerDigest>().is_ok()).count()
    }

    pub fn mount(&self, layers: &[LayerDigest]) -> Overlay {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let fd = context.as_fd();
        for layer in layers {
            fsconfig_set_string(fd, "lowerdir+", self.store.path(layer)).unwrap();
        }
        // One layer alone, or none, is no overlay.
        for name in ["a", "b"] {
            let empty = self.empty.path().join(name);
            fs::create_dir_all(&empty).unwrap();
            fsconfig_set_string(fd, "lowerdir+", empty).unwrap();
        }
        fsconfig_create(fd).unwrap();
        let mount = fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        Overlay(mount)
    }
}

/// A mounted overlay, reached through its descriptor.
pub struct Overlay(OwnedFd);

impl Overlay {
    pub fn path(&self, below: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(below)
    }
}

/// Everything about a tree that matters, by path; files with the same content under several names by the first of them.
pub fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(root.join(&dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        entries.sort();
        for name in entries {
            let path = dir.join(name);
            let full = root.join(&path);
            let metadata = fs::symlink_metadata(&full).unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&full).unwrap().display().to_string()
            } else if metadata.is_file() {
                Digest::of(&fs::read(&full).unwrap()).to_string()
            } else {
                String::new()
            };
            if metadata.is_dir() {
                dirs.push(path.clone());
            }
            let twin = if metadata.is_dir() {
                path.clone()
            } else {
                first_names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone()).clone()
            };
            let text = format!(
                "{:o} {}:{} {}.{:09} {content} {twin:?} {:?}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                xattrs(&full),
            );
            found.insert(path.display().to_string(), text);
        }
    }
    found
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut pairs: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(length);
            (String::from_utf8(name.to_owned()).unwrap(), value)
        })
        .collect();
    pairs.sort();
    pairs
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// An image with something of everything that layers do to each other.
pub fn eventful() -> Layout {
    let layout = Layout::new();
    layout.layer(|root| {
        for dir in ["bin", "etc", "home/user", "var/cache/deep/er", "replaced/below", "tmp", "swap"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in
            ["etc/one", "etc/gone", "etc/kept", "var/cache/deep/er/file", "replaced/below/x", "swap/f"]
        {
            fs::write(root.join(file), file).unwrap();
        }
        fs::hard_link(root.join("etc/one"), root.join("bin/other")).unwrap();
        std::os::unix::fs::symlink("/etc/one", root.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        fs::write(root.join("bin/su"), "#!/bin/sh\n").unwrap();
        mode(&root.join("bin/su"), 0o4755);
        mode(&root.join("tmp"), 0o1777);
        std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1001)).unwrap();
        set_xattr(&root.join("etc/kept"), "user.note", b"a\0b\n");
        set_xattr(
            &root.join("bin/other"),
            "security.capability",
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        );
        fs::write(root.join(OsStr::from_bytes("umläut ☃".as_bytes())), "x").unwrap();
        fs::write(root.join("long-".to_owned() + &"n".repeat(200)), "x").unwrap();
    });
    layout.layer(|root| {
        fs::remove_file(root.join("etc/gone")).unwrap();
        fs::remove_dir_all(root.join("var/cache/deep")).unwrap();
        // A directory by a symlink, a file by a directory, a symlink by a directory.
        fs::remove_dir_all(root.join("replaced")).unwrap();
        std::os::unix::fs::symlink("etc", root.join("replaced")).unwrap();
        fs::remove_file(root.join("etc/kept")).unwrap();
        fs::create_dir(root.join("etc/kept")).unwrap();
        fs::write(root.join("etc/kept/inner"), "inner").unwrap();
        fs::remove_file(root.join("link")).unwrap();
        fs::create_dir(root.join("link")).unwrap();
        fs::remove_dir_all(root.join("swap")).unwrap();
        fs::write(root.join("swap"), "now a file").unwrap();
    });
    layout.layer(|root| {
        fs::create_dir_all(root.join("var/cache/deep")).unwrap();
        fs::write(root.join("var/cache/deep/new"), "new").unwrap();
        fs::remove_file(root.join("swap")).unwrap();
        fs::create_dir(root.join("swap")).unwrap();
        fs::write(root.join("swap/g"), "again a directory").unwrap();
        fs::write(root.join("home/user/.profile"), "x").unwrap();
    });
    layout.config(&["--config.env", "PATH=/bin", "--config.env", "EMPTY=", "--config.user", "1000"]);
    layout
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Pairs as environments have them.
pub fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

pub fn ignore(_: Progress) {}
