//! Streams that are written and read back, and malformed ones.
//! Needs root.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mkdirat, mknodat};

use super::*;
use crate::{digest_tree, export_upper};
use walk::open_dir;

const PLENTY: StreamLimits = StreamLimits { bytes: 1 << 30, entries: 300_000 };

fn stream_of(tree: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    write_layer(open_dir(CWD, tree).unwrap(), &mut stream).unwrap();
    stream
}

/// Creates every kind of entry that an overlay's upper directory can have.
fn fill(upper: &Path) {
    fs::create_dir_all(upper.join("directory/empty")).unwrap();
    fs::write(upper.join("directory/file"), "content").unwrap();
    chown(upper.join("directory/file"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(upper.join("directory/file"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(upper.join("directory/file"), upper.join("same")).unwrap();
    symlink("../else where", upper.join("directory/link")).unwrap();
    fs::hard_link(upper.join("directory/link"), upper.join("same link")).unwrap();
    mknodat(CWD, upper.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for gone in ["gone", "gone too"] {
        mknodat(CWD, upper.join(gone), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }
    fs::write(upper.join("x".repeat(255)), "").unwrap();
    let sparse = File::create(upper.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();
    let attribute = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(upper.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    attribute("directory/file", "user.note", b"kept");
    attribute(
        "directory/file",
        "security.capability",
        &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    attribute("directory", "trusted.overlay.opaque", b"y");
    attribute("directory/empty", "trusted.overlay.redirect", b"/usr/share/zone info");
    attribute("", "user.root", b"kept");
}

/// Nests directories so deep that the path of the last one is too long for any system call.
fn dig(upper: &Path, depth: usize) {
    let mut here = open_dir(CWD, upper).unwrap();
    for _ in 0..depth {
        mkdirat(&here, "deeper", Mode::from_raw_mode(0o755)).unwrap();
        here = open_dir(&here, "deeper").unwrap();
    }
    mknodat(&here, "bottom", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
fn deep_trees_are_streamed() {
    // In memory: a disk's journal takes minutes for this.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (upper, target) = (dir.path().join("upper"), dir.path().join("target"));
    fs::create_dir(&upper).unwrap();
    dig(&upper, 20_000);
    let stream = stream_of(&upper);
    read_layer(&*stream, &target, PLENTY).unwrap();
    assert!(stream_of(&target) == stream, "it is another tree");
    for dir in [upper, target] {
        crate::trash::remove_tree(&dir).unwrap();
    }
}

#[test]
fn a_layer_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, copied, streamed) =
        (dir.path().join("upper"), dir.path().join("copied"), dir.path().join("streamed"));
    fs::create_dir(&upper).unwrap();
    fill(&upper);
    dig(&upper, 300);
    let note = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(upper.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    note("directory", "trusted.overlay.origin", b"of the old stack");
    export_upper(&upper, &copied).unwrap();
    read_layer(&*stream_of(&upper), &streamed, PLENTY).unwrap();
    assert_eq!(
        digest_tree(&streamed).unwrap(),
        digest_tree(&copied).unwrap(),
        "it differs from a copied layer"
    );
    let mut value = [0; 20];
    assert!(lgetxattr(streamed.join("directory"), "trusted.overlay.origin", &mut value).is_err());
    assert!(fs::metadata(streamed.join("sparse")).unwrap().blocks() < 100, "holes were filled");
    assert_eq!(
        fs::metadata(streamed.join("same")).unwrap().ino(),
        fs::metadata(streamed.join("directory/file")).unwrap().ino()
    );
    for dir in [upper, copied, streamed] {
        crate::trash::remove_tree(&dir).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn sockets_devices_and_foreign_attributes_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, target) = (dir.path().join("upper"), dir.path().join("target"));
    fs::create_dir(&upper).unwrap();
    let node = |name: &str, kind, device| {
        mknodat(CWD, upper.join(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
    };
    node("socket", FileType::Socket, 0);
    node("disk", FileType::BlockDevice, rustix::fs::makedev(254, 0));
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    fs::write(upper.join("file"), "").unwrap();
    lsetxattr(upper.join("file"), "trusted.other", b"x", XattrFlags::empty()).unwrap();
    chown(upper.join("file"), Some(70_000), Some(65_535)).unwrap();
    read_layer(&*stream_of(&upper), &target, PLENTY).unwrap();
    let names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    let file = fs::metadata(target.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (65_534, 65_535));
    assert!(lgetxattr(target.join("file"), "trusted.other", &mut [0; 8]).is_err());
}

/// Reads a stream that must be refused; checks that nothing is left of it and returns the error's text.
fn refused(stream: &[u8], limits: StreamLimits) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = read_layer(stream, &dir.path().join("target"), limits).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    error.to_string()
}

#[test]
fn truncated_streams_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("directory")).unwrap();
    fs::write(dir.path().join("directory/file"), "content").unwrap();
    let stream = stream_of(dir.path());
    for length in 0..stream.len() {
        refused(&stream[..length], PLENTY);
    }
    let target = dir.path().join("target");
    let longer = [&stream[..], b"not read"].concat();
    let mut rest = &longer[..];
    read_layer(&mut rest, &target, PLENTY).unwrap();
    assert_eq!(rest, b"not read");
}

/// Returns a stream of these parts, with the header.
fn malformed(parts: &[&[u8]]) -> Vec<u8> {
    [&MAGIC[..], &parts.concat()].concat()
}

fn named(tag: u8, name: &[u8]) -> Vec<u8> {
    [&[tag][..], &u16::try_from(name.len()).unwrap().to_le_bytes(), name].concat()
}

/// A link number of zero, and metadata without anything.
const PLAIN: [u8; 8 + 26] = [0; 34];

#[test]
fn names_that_lead_out_of_the_layer_are_refused() {
    for name in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0b", &[b'x'; 256]] {
        for tag in [tag::ENTER, tag::FILE, tag::SYMLINK, tag::WHITEOUT, tag::LINK] {
            let stream = malformed(&[&named(tag, name), &PLAIN]);
            let why = refused(&stream, PLENTY);
            assert!(why.contains("an invalid name") || why.contains("longer"), "{why}");
        }
    }
    // A symlink, and then a file or directory "in" it.
    let link = [&named(tag::SYMLINK, b"out")[..], &PLAIN, &4u16.to_le_bytes(), b"/tmp"].concat();
    for second in [named(tag::ENTER, b"out"), [&named(tag::FILE, b"out")[..], &PLAIN, &[0; 12]].concat()] {
        assert!(refused(&malformed(&[&link, &second]), PLENTY).contains("exists"));
    }
}

#[test]
fn inconsistent_records_are_refused() {
    let file =
        |size: u64, rest: &[u8]| malformed(&[&named(tag::FILE, b"f"), &PLAIN, &size.to_le_bytes(), rest]);
    let piece = |offset: u64, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap();
        [&length.to_le_bytes()[..], &offset.to_le_bytes(), content].concat()
    };
    assert!(refused(&file(4, &piece(2, b"abc")), PLENTY).contains("beyond"));
    assert!(refused(&file(4, &piece(u64::MAX, b"abc")), PLENTY).contains("beyond"));
    assert!(refused(&file(9, &[piece(4, b"abc"), piece(3, b"abc")].concat()), PLENTY).contains("beyond"));
    assert!(refused(&file(9, &[0xff; 12]), PLENTY).contains("beyond"), "the length was believed");
    assert!(refused(&file(1 << 40, &[]), PLENTY).contains("exceeds its size limit"));
    let link = [&named(tag::LINK, b"l")[..], &7u64.to_le_bytes()].concat();
    assert!(refused(&malformed(&[&link]), PLENTY).contains("link to an unknown file"));
    assert!(refused(&malformed(&[b"?"]), PLENTY).contains("an unknown record"));
    let few = StreamLimits { entries: 5, ..PLENTY };
    let dirs = named(tag::ENTER, b"d").repeat(6);
    assert!(refused(&malformed(&[&dirs]), few).contains("limit of files"));
    let root = [&[tag::LEAVE][..], &PLAIN[..26]].concat();
    assert!(refused(&malformed(&[&root, &root]), PLENTY).contains("after its end"));
    let read = read_layer(std::io::empty().chain(&b"x"[..]), Path::new("/nonexistent/x"), PLENTY);
    assert!(read.is_err());
}

#[test]
fn only_harmless_attributes_are_kept() {
    for redirect in [&b"/a/b"[..], b"name", b"/a b"] {
        assert!(is_kept(b"trusted.overlay.redirect", redirect));
    }
    for redirect in [&b"/a/../b"[..], b"..", b"a/b", b"/", b"", b"/a//b", b"/a\0b"] {
        assert!(!is_kept(b"trusted.overlay.redirect", redirect));
    }
    for name in [
        "trusted.overlay.metacopy",
        "trusted.x",
        "user.overlay.opaque",
        "user.",
        "security.selinux",
        "security.ima",
    ] {
        assert!(!is_kept(name.as_bytes(), b"y"), "{name}");
    }
    assert!(!is_kept(b"trusted.overlay.opaque", b"x") && is_kept(b"user.x", b""));
}
