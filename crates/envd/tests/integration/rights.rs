//! Files are touched with the rights of the user that a request names.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Envd, Response};

const RAW: (&str, &str) = ("Content-Type", "application/octet-stream");
/// A user of every Debian and its id.
const USER: (&str, u32) = ("daemon", 1);

/// An envd, a directory of the user's, and a secret file of root's.
struct Setup {
    envd: Envd,
    own: PathBuf,
    secret: PathBuf,
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
}

fn setup() -> Setup {
    let envd = Envd::start();
    allow(envd.dir.path(), 0o755);
    let (own, secret) = (envd.path("own"), envd.path("secret"));
    std::fs::create_dir(&own).expect("made");
    std::os::unix::fs::chown(&own, Some(USER.1), Some(USER.1)).expect("changed");
    std::fs::write(&secret, "of root").expect("written");
    allow(&secret, 0o600);
    Setup { envd, own, secret }
}

impl Setup {
    fn upload(&self, path: &Path) -> Response {
        let target = format!("/files?path={}&username={}", path.display(), USER.0);
        self.envd.request("POST", &target, &[RAW], b"new")
    }

    fn download(&self, path: &Path, headers: &[(&str, &str)]) -> Response {
        self.envd.request("GET", &format!("/files?path={}&username={}", path.display(), USER.0), headers, b"")
    }

    fn call(&self, method: &str, body: &Value) -> (u16, Value) {
        let user = format!("Basic {}", STANDARD.encode(format!("{}:", USER.0)));
        let headers = [("Content-Type", "application/json"), ("Authorization", user.as_str())];
        let target = format!("/filesystem.Filesystem/{method}");
        let response = self.envd.request("POST", &target, &headers, body.to_string().as_bytes());
        (response.status, response.json())
    }

    fn assert_secret_is_untouched(&self) {
        let meta = std::fs::metadata(&self.secret).expect("there");
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::read(&self.secret).expect("read"), b"of root");
    }
}

fn assert_denied((status, body): (u16, Value)) {
    assert_eq!((status, body["code"].as_str()), (403, Some("permission_denied")), "{body}");
}

#[test]
fn a_planted_link_hands_nothing_over() {
    let setup = setup();
    let link = setup.own.join("innocent");
    symlink(&setup.secret, &link).expect("linked");
    let response = setup.upload(&link);
    assert_eq!((response.status, response.json()["code"].as_u64()), (403, Some(403)), "{}", response.text());
    assert!(response.text().contains("permission denied for user 'daemon'"), "{}", response.text());
    assert_eq!(setup.upload(&setup.secret).status, 403);
    for headers in [&[][..], &[("Accept-Encoding", "gzip")]] {
        assert_eq!(setup.download(&link, headers).status, 403);
    }
    let parts = json!({"source_paths": [link], "destination": setup.own.join("joined"), "username": USER.0});
    let headers = [("Content-Type", "application/json")];
    let joined = setup.envd.request("POST", "/files/compose", &headers, parts.to_string().as_bytes());
    assert_eq!(joined.status, 403, "{}", joined.text());
    setup.assert_secret_is_untouched();

    // In a directory of root's that the link leads to, no directory, file or watcher comes into being.
    let dir = setup.envd.path("private");
    std::fs::create_dir(&dir).expect("made");
    allow(&dir, 0o700);
    symlink(&dir, setup.own.join("dir")).expect("linked");
    let inside = setup.own.join("dir/x");
    assert_eq!(setup.upload(&inside).status, 403);
    assert_denied(setup.call("MakeDir", &json!({"path": inside})));
    assert_denied(setup.call("Stat", &json!({"path": inside})));
    assert_denied(setup.call("ListDir", &json!({"path": setup.own.join("dir")})));
    assert_denied(setup.call("CreateWatcher", &json!({"path": setup.own.join("dir")})));
    assert_eq!(std::fs::read_dir(&dir).expect("read").count(), 0);
}

#[test]
fn entries_of_others_are_neither_moved_nor_removed() {
    let setup = setup();
    let taken = setup.own.join("taken");
    assert_denied(setup.call("Move", &json!({"source": setup.secret, "destination": taken})));
    assert_denied(setup.call("Remove", &json!({"path": setup.secret})));
    std::fs::write(setup.own.join("mine"), "").expect("written");
    assert_denied(
        setup.call("Move", &json!({"source": setup.own.join("mine"), "destination": setup.secret})),
    );
    assert_denied(setup.call("Remove", &json!({"path": setup.own})));
    setup.assert_secret_is_untouched();
    assert!(setup.own.exists());
}

#[test]
fn the_users_own_files_work_as_before() {
    let setup = setup();
    let path = setup.own.join("a/b");
    assert_eq!(setup.upload(&path).status, 200);
    let owner =
        |path: &Path| std::fs::metadata(path).map(|meta| (meta.uid(), meta.mode() & 0o777)).expect("there");
    assert_eq!((owner(&path), owner(&setup.own.join("a"))), ((USER.1, 0o644), (USER.1, 0o755)));
    assert_eq!(setup.download(&path, &[]).text(), "new");
    assert_eq!(setup.call("MakeDir", &json!({"path": setup.own.join("c/d")})).0, 200);
    assert_eq!(setup.call("Move", &json!({"source": path, "destination": setup.own.join("e/f")})).0, 200);
    assert_eq!(setup.call("Remove", &json!({"path": setup.own.join("c")})).0, 200);

    // A directory below that may not be read is listed, but not what is in it.
    let closed = setup.own.join("closed");
    std::fs::create_dir(&closed).expect("made");
    std::fs::write(closed.join("x"), "").expect("written");
    allow(&closed, 0o700);
    let (status, listed) = setup.call("ListDir", &json!({"path": setup.own, "depth": 3}));
    let names = listed["entries"].as_array().expect("entries").iter().map(|entry| entry["name"].as_str());
    assert_eq!((status, names.collect::<Option<Vec<_>>>()), (200, Some(vec!["a", "closed", "e", "f"])));

    // A file of root's that everybody may write is written, and stays root's.
    let shared = setup.envd.path("shared");
    std::fs::write(&shared, "old").expect("written");
    allow(&shared, 0o666);
    assert_eq!(setup.upload(&shared).status, 200);
    assert_eq!((owner(&shared), std::fs::read(&shared).expect("read")), ((0, 0o666), b"new".to_vec()));
}

/// Clients write to `/app/main.py` as `user`, who owns nothing there.
#[test]
fn new_entries_may_be_created_where_only_root_writes() {
    let setup = setup();
    let place = TempDir::new_in("/").expect("a directory");
    allow(place.path(), 0o755);
    let path = |name: &str| place.path().join(name);
    let owner = |name: &str| std::fs::symlink_metadata(path(name)).expect("there").uid();

    assert_eq!(setup.upload(&path("app/src/main.py")).status, 200);
    assert_eq!(setup.upload(&path("file")).status, 200);
    assert_eq!(setup.call("MakeDir", &json!({"path": path("dir")})).0, 200);
    for name in ["app", "app/src", "app/src/main.py", "file", "dir"] {
        assert_eq!(owner(name), USER.1, "{name}");
    }
    assert_eq!(setup.call("Move", &json!({"source": path("file"), "destination": path("moved")})).0, 200);
    for name in ["app", "moved"] {
        assert_eq!(setup.call("Remove", &json!({"path": path(name)})).0, 200, "{name}");
        assert!(!path(name).exists(), "{name}");
    }

    std::fs::write(path("of_root"), "of root").expect("written");
    assert_eq!(setup.upload(&path("of_root")).status, 403);
    assert_denied(setup.call("Remove", &json!({"path": path("of_root")})));
    assert_denied(setup.call("Move", &json!({"source": path("dir"), "destination": path("of_root")})));
    symlink(path("nowhere"), path("dangling")).expect("linked");
    assert_eq!(setup.upload(&path("dangling")).status, 403);
    symlink(place.path(), setup.own.join("out")).expect("linked");
    assert_eq!(setup.upload(&setup.own.join("out/through_a_link")).status, 403);
    allow(place.path(), 0o700);
    assert_eq!(setup.upload(&path("private")).status, 403);
    assert_eq!((owner("of_root"), path("nowhere").exists(), path("private").exists()), (0, false, false));
}

#[test]
fn a_link_without_a_path_stays_in_the_home() {
    let setup = setup();
    let form = ("Content-Type", "multipart/form-data; boundary=XX");
    let by_link = ("X-Envd-By-Link", "true");
    let upload = |name: &str, query: &str| {
        let head =
            format!("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
        setup.envd.request(
            "POST",
            &format!("/files{query}"),
            &[form, by_link],
            format!("{head}x\r\n--XX--\r\n").as_bytes(),
        )
    };
    let outside = setup.own.join("outside");
    let up = format!("../../../../../..{}", outside.display());
    for name in [outside.to_str().expect("text"), &up, "/", "~/.."] {
        assert!(matches!(upload(name, "?username=root").status, 400 | 403), "{name}");
    }
    assert!(!outside.exists());
    // The signature covers the user, so no header may name another one.
    let user = format!("Basic {}", STANDARD.encode("root:"));
    let target = format!("/files?path={}&username={}", setup.secret.display(), USER.0);
    assert_eq!(setup.envd.request("GET", &target, &[by_link, ("Authorization", &user)], b"").status, 403);
    // A signed path may be anywhere.
    assert_eq!(upload("ignored", &format!("?path={}&username={}", outside.display(), USER.0)).status, 200);
    assert!(outside.exists());
}
