use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::*;

struct Volume {
    dir: TempDir,
    root: VolumeRoot,
}

fn volume() -> Volume {
    let dir = tempfile::tempdir().unwrap();
    let root = VolumeRoot::new(File::open(dir.path()).unwrap().into());
    Volume { dir, root }
}

fn path(text: &str) -> VolumePath {
    VolumePath::parse(text).unwrap()
}

const FORCE: CreateOptions =
    CreateOptions { attributes: Attributes { uid: None, gid: None, mode: None }, force: true };

fn write(root: &VolumeRoot, at: &str, content: &str, options: CreateOptions) -> Result<Entry, VolumeError> {
    let file = root.write(&path(at), options)?;
    file.file().write_all(content.as_bytes()).unwrap();
    file.finish()
}

fn read(root: &VolumeRoot, at: &str) -> Result<String, VolumeError> {
    let mut text = String::new();
    root.read(&path(at))?.file.read_to_string(&mut text).unwrap();
    Ok(text)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let Volume { dir, root } = volume();
    let entry = write(&root, "a b+c\n.txt", "one", CreateOptions::default()).unwrap();
    assert_eq!((entry.name.as_str(), entry.path.as_str(), entry.size), ("a b+c\n.txt", "/a b+c\n.txt", 3));
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.kind), (0o644, 1000, 1000, EntryKind::File));
    assert!(matches!(write(&root, "a b+c\n.txt", "two", CreateOptions::default()), Err(VolumeError::Exists)));
    assert_eq!(read(&root, "/a b+c\n.txt").unwrap(), "one");

    let attributes = Attributes { uid: Some(5), gid: Some(6), mode: Some(0o4711) };
    let entry = write(&root, "a b+c\n.txt", "", CreateOptions { attributes, force: true }).unwrap();
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.size), (0o4711, 5, 6, 0));

    let begun = root.write(&path("half"), FORCE).unwrap();
    begun.file().write_all(b"half").unwrap();
    drop(begun);
    assert_eq!(names(dir.path()), ["a b+c\n.txt"]);
}

#[test]
fn a_name_that_was_taken_during_an_upload_is_a_conflict() {
    let Volume { dir, root } = volume();
    let begun = root.write(&path("name"), CreateOptions::default()).unwrap();
    fs::write(dir.path().join("name"), "other").unwrap();
    assert!(matches!(begun.finish(), Err(VolumeError::Exists)));
    assert_eq!(read(&root, "name").unwrap(), "other");
}

#[test]
fn parents_are_made_when_asked_for() {
    let Volume { dir: _dir, root } = volume();
    assert!(matches!(write(&root, "x/y/z", "", CreateOptions::default()), Err(VolumeError::NotFound)));
    assert!(matches!(root.make_dir(&path("x/y"), CreateOptions::default()), Err(VolumeError::NotFound)));
    let attributes = Attributes { uid: Some(7), gid: None, mode: Some(0o600) };
    write(&root, "x/y/z", "deep", CreateOptions { attributes, force: true }).unwrap();
    let parent = root.stat(&path("x")).unwrap();
    assert_eq!((parent.mode, parent.uid, parent.kind), (0o755, 7, EntryKind::Directory));

    assert!(matches!(root.make_dir(&path("x"), CreateOptions::default()), Err(VolumeError::Exists)));
    let again =
        CreateOptions { attributes: Attributes { mode: Some(0o700), ..Attributes::default() }, force: true };
    assert_eq!(root.make_dir(&path("x"), again).unwrap(), parent);
    assert!(matches!(root.make_dir(&path("x/y/z"), FORCE), Err(VolumeError::Exists)));
    for force in [CreateOptions::default(), FORCE] {
        assert!(matches!(root.make_dir(&path("x/y/z/below"), force), Err(VolumeError::NotDirectory)));
        assert!(matches!(write(&root, "x/y/z/below", "", force), Err(VolumeError::NotDirectory)));
    }
    assert!(matches!(write(&root, "x/y", "", FORCE), Err(VolumeError::NotFile)));
    assert_eq!(root.make_dir(&path("/"), FORCE).unwrap().path, "/");
}

#[test]
fn links_never_lead_out_of_the_volume() {
    let Volume { dir, root } = volume();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let before = fs::metadata(outside.path().join("secret")).unwrap();
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    symlink("../../../../../../..", dir.path().join("up")).unwrap();
    symlink("/proc/self/root", dir.path().join("magic")).unwrap();
    for at in ["out/secret", "file", "magic/etc/passwd"] {
        assert!(matches!(read(&root, at), Err(VolumeError::NotFound)), "{at}");
    }
    assert!(matches!(root.list(&path("out"), 1), Err(VolumeError::NotFound)));
    // Up from the root is the root.
    assert!(root.list(&path("up"), 1).unwrap().len() == 4);
    assert!(
        root.set_attributes(&path("file"), Attributes { mode: Some(0o777), ..Attributes::default() })
            .is_err()
    );
    // The link is replaced, not what it leads to.
    write(&root, "file", "mine", FORCE).unwrap();
    assert_eq!(read(&root, "file").unwrap(), "mine");
    root.remove(&path("out"), || true).unwrap();
    let after = fs::metadata(outside.path().join("secret")).unwrap();
    assert_eq!((before.mtime(), before.mode(), before.len()), (after.mtime(), after.mode(), after.len()));
}

#[test]
fn links_within_are_followed_but_shown_themselves() {
    let Volume { dir, root } = volume();
    write(&root, "dir/file", "text", FORCE).unwrap();
    symlink("/dir/file", dir.path().join("link")).unwrap();
    let entry = root.stat(&path("link")).unwrap();
    assert_eq!((entry.kind, entry.target.as_deref()), (EntryKind::Symlink, Some("/dir/file")));
    assert_eq!(read(&root, "link").unwrap(), "text");
    root.set_attributes(&path("link"), Attributes { mode: Some(0o600), ..Attributes::default() }).unwrap();
    assert_eq!(root.stat(&path("dir/file")).unwrap().mode, 0o600);
    root.remove(&path("link"), || true).unwrap();
    assert_eq!(read(&root, "dir/file").unwrap(), "text");
}

#[test]
fn nothing_but_files_is_opened() {
    let Volume { dir, root } = volume();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    // Would wait for a writer.
    assert!(matches!(root.read(&path("fifo")), Err(VolumeError::NotFile)));
    assert!(matches!(root.read(&path("/")), Err(VolumeError::NotFile)));
    assert_eq!(root.stat(&path("fifo")).unwrap().kind, EntryKind::Unknown);
    write(&root, "fifo", "a file now", FORCE).unwrap();
    assert_eq!(read(&root, "fifo").unwrap(), "a file now");
}

#[test]
fn lists_go_as_deep_as_asked() {
    let Volume { dir, root } = volume();
    write(&root, "b/c/d/e", "", FORCE).unwrap();
    write(&root, "a", "", FORCE).unwrap();
    symlink("b", dir.path().join("z")).unwrap();
    let list = |at: &str, depth| -> Vec<String> {
        root.list(&path(at), depth).unwrap().into_iter().map(|entry| entry.path).collect()
    };
    assert_eq!(list("/", 0), ["/a", "/b", "/z"]);
    assert_eq!(list("/", 1), ["/a", "/b", "/z"]);
    assert_eq!(list(".", 3).len(), 5);
    assert_eq!(list("/b", 10), ["/b/c", "/b/c/d", "/b/c/d/e"]);
    assert!(matches!(root.list(&path("/"), 11), Err(VolumeError::Invalid(_))));
    for at in ["a", "missing"] {
        assert!(matches!(root.list(&path(at), 1), Err(VolumeError::NotFound)), "{at}");
    }
}

#[test]
fn a_list_is_no_larger_than_its_reader_can_stand() {
    let Volume { dir, root } = volume();
    // 4,000 control characters are 24,000 bytes of JSON.
    let target = "\u{1}".repeat(4_000);
    for index in 0..350 {
        symlink(&target, dir.path().join(index.to_string())).unwrap();
    }
    assert!(matches!(root.list(&path("/"), 1), Err(VolumeError::Invalid(_))));
    for index in 300..350 {
        fs::remove_file(dir.path().join(index.to_string())).unwrap();
    }
    assert_eq!(root.list(&path("/"), 1).unwrap().len(), 300);
}

#[test]
fn trees_are_removed_with_everything_but_never_the_root() {
    let Volume { dir, root } = volume();
    write(&root, "a/b/c", "", FORCE).unwrap();
    fs::set_permissions(dir.path().join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();
    root.remove(&path("a"), || true).unwrap();
    assert!(matches!(root.remove(&path("a"), || true), Err(VolumeError::NotFound)));
    assert!(matches!(root.remove(&path("/a/.."), || true), Err(VolumeError::Invalid(_))));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn attributes_that_cannot_be_set_are_refused() {
    let Volume { dir: _dir, root } = volume();
    write(&root, "f", "", FORCE).unwrap();
    for bad in [
        Attributes { mode: Some(0o10_0644), ..Attributes::default() },
        Attributes { uid: Some(u32::MAX), ..Attributes::default() },
    ] {
        assert!(matches!(root.set_attributes(&path("f"), bad), Err(VolumeError::Invalid(_))));
    }
}
