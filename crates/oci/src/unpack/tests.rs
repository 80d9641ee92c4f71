//! Archives that no proper tool makes, and what must become of them.
//! Each is unpacked beside a file that must not change.
//! Needs root, for owners and device nodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::attributes::{is_opaque, xattrs_of};
use super::lower::open_folder;
use super::*;
use crate::Limits;

type Entries<'a> = &'a [(EntryType, &'a str, &'a str)];

/// Entries of kind, name, and content or target.
fn tar(entries: Entries<'_>) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, content) in entries {
        add(&mut tar, *kind, name.as_bytes(), content.as_bytes());
    }
    tar.into_inner().unwrap()
}

fn header(kind: EntryType, name: &[u8]) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000);
    header.set_size(0);
    header
}

fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], content: &[u8]) {
    let mut header = header(kind, name);
    let mut data = content;
    if matches!(kind, EntryType::Link | EntryType::Symlink) {
        header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        data = &[];
    }
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

struct Bench {
    dir: TempDir,
    warnings: Warnings,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Self { dir, warnings: Warnings::default(), limits: Limits { size: 1 << 20, entries: 1000 } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unpacks to the folder `name`, upon others.
    fn unpack_upon(&mut self, name: &str, tar: &[u8], below: &[&str]) -> Result<bool, OciError> {
        let budget = Budget::new(self.limits, Arc::default());
        let below: Vec<PathBuf> = below.iter().map(|name| self.path(name)).collect();
        let archive = crate::budget::Metered { inner: tar, budget: &budget };
        let root = self.path(name);
        let answer = unpack(archive, &root, &below, Source::Image, &budget, &mut self.warnings);
        assert_eq!(fs::read_to_string(self.path("outside/secret")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
        answer
    }

    fn unpack(&mut self, entries: Entries<'_>) -> Result<bool, OciError> {
        self.unpack_upon("root", &tar(entries), &[])
    }

    fn is_opaque(&self, name: &str) -> bool {
        is_opaque(&open_folder(CWD, self.path(name)).unwrap()).unwrap()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let metadata = fs::symlink_metadata(self.path(name)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }
}

use EntryType::{Directory as D, Link as L, Regular as F, Symlink as S};

#[test]
fn names_that_lead_outside_are_refused() {
    for entries in [
        &[(F, "../outside/secret", "x")][..],
        &[(F, "a/../../outside/secret", "x")],
        &[(D, "..", "")],
        &[(L, "a", "../outside/secret")],
        &[(L, "a", "/")],
        &[(F, "", "x")],
        &[(S, "./", "/x")],
    ] {
        let error = Bench::new().unpack(entries).unwrap_err();
        assert!(matches!(error, OciError::Entry { .. }), "{error}");
    }
}

#[test]
fn links_as_parents_stay_inside() {
    let mut bench = Bench::new();
    let outside = bench.path("outside");
    let outside = outside.to_str().unwrap();
    bench
        .unpack(&[
            (S, "up", "../../../../.."),
            (F, "up/file", "top"),
            (S, "absolute", outside),
            (F, "absolute/secret", "inside"),
            (S, "near", "dir/../dir"),
            (F, "near/file", "near"),
            (F, "/rooted", "x"),
        ])
        .unwrap();
    let read = |name: &str| fs::read_to_string(bench.path(name)).unwrap();
    assert_eq!(read("root/file"), "top");
    assert_eq!(read(&format!("root{outside}/secret")), "inside");
    assert_eq!(read("root/dir/file"), "near");
    assert_eq!(read("root/rooted"), "x");
    assert_eq!(fs::read_link(bench.path("root/absolute")).unwrap().to_str().unwrap(), outside);
}

#[test]
fn links_in_circles_and_files_as_parents_are_refused() {
    for entries in [
        &[(S, "a", "b"), (S, "b", "a"), (F, "a/x", "")][..],
        &[(F, "a", ""), (F, "a/x", "")],
        &[(S, "a", "a/a"), (F, "a/x", "")],
    ] {
        assert!(matches!(Bench::new().unpack(entries), Err(OciError::Entry { .. })));
    }
}

#[test]
fn links_that_lead_about_are_refused() {
    let about = "d/../".repeat(800);
    let mut tar = Builder::new(Vec::new());
    for name in ["a", "b"] {
        let target = format!("{about}{}", if name == "a" { "b" } else { "d" });
        tar.append_pax_extensions([("linkpath", target.as_bytes())]).unwrap();
        add(&mut tar, S, name.as_bytes(), b"short");
    }
    add(&mut tar, F, b"b/x", b"");
    let one = tar.get_ref().clone();
    Bench::new().unpack_upon("root", &one, &[]).unwrap();
    add(&mut tar, F, b"a/x", b"");
    let answer = Bench::new().unpack_upon("root", &tar.into_inner().unwrap(), &[]);
    assert!(matches!(answer, Err(OciError::Entry { .. })));
}

#[test]
fn a_link_replaced_between_entries_is_seen() {
    let mut bench = Bench::new();
    bench
        .unpack(&[(D, "real", ""), (S, "a", "real"), (F, "a/one", ""), (D, "a", ""), (F, "a/two", "")])
        .unwrap();
    assert!(bench.path("root/real/one").exists());
    assert!(bench.path("root/a/two").exists() && !bench.path("root/real/two").exists());
}

#[test]
fn the_last_of_several_entries_counts() {
    let mut bench = Bench::new();
    bench
        .unpack(&[
            (F, "a", "1"),
            (F, "a", "2"),
            (D, "b", ""),
            (F, "b/x", ""),
            (F, "b", "file"),
            (S, "c", "/etc/passwd"),
            (F, "c", "file"),
            (D, "d/e", ""),
            (F, "d/e/f", ""),
            (D, "d/e", ""),
        ])
        .unwrap();
    let read = |name: &str| fs::read_to_string(bench.path(name)).unwrap();
    assert_eq!((read("root/a"), read("root/b"), read("root/c")), ("2".into(), "file".into(), "file".into()));
    assert!(bench.path("root/d/e/f").exists());
}

#[test]
fn hard_links_share_a_file_of_the_layer() {
    let mut bench = Bench::new();
    bench.unpack(&[(F, "a", "x"), (L, "b", "/a"), (L, "b", "b"), (S, "s", "a"), (L, "t", "./s")]).unwrap();
    let inode = |name: &str| fs::symlink_metadata(bench.path(name)).unwrap().ino();
    assert_eq!(inode("root/a"), inode("root/b"));
    assert_eq!(inode("root/s"), inode("root/t"));
    assert!(fs::symlink_metadata(bench.path("root/t")).unwrap().is_symlink());
    for entries in
        [&[(L, "a", "missing")][..], &[(D, "d", ""), (L, "a", "d")], &[(F, ".wh.w", ""), (L, "a", "w")]]
    {
        assert!(matches!(Bench::new().unpack(entries), Err(OciError::Entry { .. })));
    }
}

#[test]
fn whiteouts_and_opaque_folders_take_overlay_form() {
    let mut bench = Bench::new();
    bench
        .unpack(&[
            (F, ".wh.gone", ""),
            (D, "hidden", ""),
            (F, "hidden/.wh..wh..opq", ""),
            (F, "hidden/new", ""),
            // In either order, what the layer itself has stays.
            (F, ".wh.first", ""),
            (D, "first", ""),
            (D, "second", ""),
            (F, "second/file", ""),
            (F, ".wh.second", ""),
            (F, "kept", "x"),
            (F, ".wh.kept", ""),
            (F, ".wh.implied", ""),
            (F, "implied/file", ""),
            (D, ".wh..wh.plnk", ""),
            (F, ".wh..wh.plnk/1", ""),
            (F, ".wh..wh.aufs", ""),
        ])
        .unwrap();
    assert!(bench.is_whiteout("root/gone"));
    for folder in ["hidden", "first", "second", "implied"] {
        assert!(bench.is_opaque(&format!("root/{folder}")), "{folder}");
    }
    assert!(bench.path("root/hidden/new").exists() && bench.path("root/second/file").exists());
    assert_eq!(fs::read_to_string(bench.path("root/kept")).unwrap(), "x");
    assert!(!bench.is_opaque("root"));
    let mut names: Vec<_> = fs::read_dir(bench.path("root"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["first", "gone", "hidden", "implied", "kept", "second"]);
}

#[test]
fn whiteouts_in_what_is_no_folder_any_more_say_nothing() {
    let mut bench = Bench::new();
    let below = [(D, "d", ""), (D, "d/e", ""), (F, "d/e/f", ""), (D, "s", ""), (D, "t", ""), (F, "t/x", "")];
    bench.unpack_upon("a", &tar(&below), &[]).unwrap();
    let above = [
        // The folder's whiteout after one in it, and before one in it.
        (F, "d/e/.wh.f", ""),
        (F, "d/.wh.e", ""),
        (F, "d/e/.wh.g", ""),
        (S, "s", "t"),
        (F, "s/.wh.x", ""),
        (F, "file", ""),
        (F, "file/.wh.x", ""),
        (F, "never/was/.wh.x", ""),
        (F, "never/.wh..wh..opq", ""),
    ];
    bench.unpack_upon("b", &tar(&above), &["a"]).unwrap();
    assert!(bench.is_whiteout("b/d/e"));
    for absent in ["b/t", "b/never"] {
        assert!(!bench.path(absent).exists(), "{absent}");
    }
}

#[test]
fn an_archives_own_marks_are_not_taken() {
    let mut tar = Builder::new(Vec::new());
    let records = [
        ("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/outside"),
        ("SCHILY.xattr.security.selinux", b"label"),
        ("SCHILY.xattr.user.note", b"\0\n="),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    tar.append_pax_extensions(records).unwrap();
    add(&mut tar, F, b"file", b"x");
    tar.append_pax_extensions(records[..2].iter().copied()).unwrap();
    add(&mut tar, D, b"dir", b"");
    for (kind, name) in [(EntryType::Char, "zero"), (EntryType::Char, "null"), (EntryType::Block, "disk")] {
        let mut header = header(kind, name.as_bytes());
        header.set_device_major(u32::from(name != "zero")).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        tar.append(&header, &[][..]).unwrap();
    }
    add(&mut tar, EntryType::Fifo, b"pipe", b"");
    let mut bench = Bench::new();
    bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]).unwrap();
    let root = open_folder(CWD, bench.path("root")).unwrap();
    let names: Vec<_> = xattrs_of(&root, b"file").unwrap();
    let names: Vec<_> = names.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names, [&b"security.capability"[..], b"user.note"]);
    assert!(xattrs_of(&root, b"dir").unwrap().is_empty());
    for device in ["zero", "null", "disk"] {
        assert!(!bench.path("root").join(device).exists(), "{device}");
    }
    assert!(fs::symlink_metadata(bench.path("root/pipe")).unwrap().file_type().is_fifo());
    assert_eq!(bench.warnings.into_vec().len(), 7);
}

#[test]
fn owners_modes_and_times_are_kept() {
    let mut tar = Builder::new(Vec::new());
    let mut header = header(F, b"file");
    header.set_uid(1000);
    header.set_gid(70_000);
    header.set_mode(0o6751);
    header.set_cksum();
    tar.append(&header, &[][..]).unwrap();
    let mut folder = self::header(D, b"dir");
    folder.set_mode(0o3777);
    folder.set_cksum();
    tar.append(&folder, &[][..]).unwrap();
    tar.append_pax_extensions([("mtime", &b"5.25"[..])]).unwrap();
    add(&mut tar, F, b"dir/file", b"x");
    let mut bench = Bench::new();
    bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]).unwrap();
    let file = fs::metadata(bench.path("root/file")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime()),
        (1000, 65_534, 0o6751, 1_000_000)
    );
    let folder = fs::metadata(bench.path("root/dir")).unwrap();
    assert_eq!((folder.mode() & 0o7777, folder.mtime()), (0o3777, 1_000_000));
    let file = fs::metadata(bench.path("root/dir/file")).unwrap();
    assert_eq!((file.mtime(), file.mtime_nsec()), (5, 250_000_000));
    assert_eq!(bench.warnings.into_vec(), ["file: owner 70000 is beyond 65535 and became nobody"]);
}

#[test]
fn unmentioned_parents_look_as_below() {
    let mut bench = Bench::new();
    let mut tar_below = Builder::new(Vec::new());
    let mut tmp = header(D, b"tmp");
    tmp.set_mode(0o1777);
    tmp.set_uid(7);
    tmp.set_cksum();
    tar_below.append(&tmp, &[][..]).unwrap();
    add(&mut tar_below, D, b"usr/lib", b"");
    add(&mut tar_below, S, b"lib", b"usr/lib");
    add(&mut tar_below, F, b"usr/lib/old", b"old");
    add(&mut tar_below, D, b"gone", b"");
    assert!(bench.unpack_upon("a", &tar_below.into_inner().unwrap(), &[]).unwrap(), "usr was not mentioned");
    assert!(!bench.unpack_upon("b", &tar(&[(F, ".wh.gone", "")]), &["a"]).unwrap());
    let above = [(F, "tmp/x", ""), (F, "lib/new", ""), (F, "gone/x", ""), (L, "hard", "lib/old")];
    assert!(bench.unpack_upon("c", &tar(&above), &["b", "a"]).unwrap());
    let tmp = fs::metadata(bench.path("c/tmp")).unwrap();
    assert_eq!((tmp.permissions().mode() & 0o7777, tmp.uid()), (0o1777, 7));
    assert!(bench.path("c/usr/lib/new").exists() && !bench.path("c/lib").exists());
    assert_eq!(fs::metadata(bench.path("c/gone")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_to_string(bench.path("c/hard")).unwrap(), "old");
    assert_eq!(
        fs::metadata(bench.path("c/usr/lib/old")).unwrap().ino(),
        fs::metadata(bench.path("c/hard")).unwrap().ino()
    );
}

#[test]
fn an_opaque_folder_below_hides_what_is_further_below() {
    let mut bench = Bench::new();
    bench.unpack_upon("a", &tar(&[(D, "d", ""), (F, "d/x", "old")]), &[]).unwrap();
    bench.unpack_upon("b", &tar(&[(D, "d", ""), (F, "d/.wh..wh..opq", "")]), &["a"]).unwrap();
    let answer = bench.unpack_upon("c", &tar(&[(D, "e", ""), (L, "e/l", "d/x")]), &["b", "a"]);
    assert!(matches!(answer, Err(OciError::Entry { .. })));
}

#[test]
fn bombs_stop_at_the_limit() {
    let mut bench = Bench::new();
    bench.limits.size = 100 << 10;
    let big = "x".repeat(200 << 10);
    let error = bench.unpack(&[(F, "big", &big)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the uncompressed Docker image size (at least 1 MB) exceeds the maximum filesystem size (1 MB). \
         Please reduce the image's size, or use a smaller base image."
    );
    assert!(fs::metadata(bench.path("root/big")).unwrap().len() <= 100 << 10);

    let mut bench = Bench::new();
    bench.limits.entries = 10;
    let names: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let entries: Vec<_> = names.iter().map(|name| (F, name.as_str(), "")).collect();
    assert!(matches!(bench.unpack(&entries), Err(OciError::TooManyEntries(10))));

    // Folders that nothing stands for are counted.
    for (limit, entries) in [(u64::MAX, 100), (100_000, 1000)] {
        let mut bench = Bench::new();
        bench.limits = Limits { size: limit, entries };
        let deep = "d/".repeat(45) + "f";
        let mut tar = Builder::new(Vec::new());
        for number in 0..10 {
            add(&mut tar, F, format!("{number}/{deep}").as_bytes(), b"");
        }
        let answer = bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]);
        assert!(matches!(answer, Err(OciError::TooManyEntries(_) | OciError::TooLarge { .. })));
    }

    // Zeros after the end are counted too.
    let mut bench = Bench::new();
    let trailing = vec![0; 2 << 20];
    assert!(matches!(bench.unpack_upon("root", &trailing, &[]), Err(OciError::TooLarge { .. })));
}

#[test]
fn deep_and_long_names_have_limits() {
    let mut bench = Bench::new();
    let mut tar = Builder::new(Vec::new());
    let deep = "d/".repeat(199) + "f";
    let long = format!("{}/{}", "x".repeat(255), "y".repeat(255));
    for name in [&deep, &long] {
        tar.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        add(&mut tar, F, b"short", b"x");
    }
    let mut gnu = Header::new_gnu();
    let name = "g".repeat(150);
    gnu.set_size(0);
    gnu.set_mode(0o600);
    gnu.set_mtime(0);
    gnu.set_uid(0);
    gnu.set_gid(0);
    tar.append_data(&mut gnu, &name, &[][..]).unwrap();
    bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]).unwrap();
    for name in [&deep, &long, &name] {
        assert!(bench.path("root").join(name).exists());
    }
    // On a thread as small as those it runs on.
    let root = bench.path("root");
    let small = std::thread::Builder::new().stack_size(2 << 20);
    small.spawn(move || layers::digest_tree(&root).unwrap()).unwrap().join().unwrap();

    for name in ["d/".repeat(201), "x".repeat(256), "y/".repeat(3000)] {
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        add(&mut tar, F, b"short", b"x");
        let answer = Bench::new().unpack_upon("root", &tar.into_inner().unwrap(), &[]);
        assert!(matches!(answer, Err(OciError::Entry { .. })));
    }
    // Symlinks do not get around it.
    let hop = "d/".repeat(45);
    let links: Vec<(String, String)> =
        (0..5).map(|n| (format!("l{n}"), format!("{hop}l{}", n + 1))).collect();
    let mut tar = Builder::new(Vec::new());
    for (depth, (name, target)) in links.iter().enumerate() {
        let name = hop.repeat(depth) + name;
        tar.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        add(&mut tar, S, b"short", target.as_bytes());
    }
    add(&mut tar, F, b"l0/file", b"");
    let answer = Bench::new().unpack_upon("root", &tar.into_inner().unwrap(), &[]);
    assert!(matches!(answer, Err(OciError::Entry { .. })));
}

#[test]
fn sparse_files_have_holes_and_count_whole() {
    let map = "2\n4096\n3\n1048576\n2\n";
    let content = [map.as_bytes(), &vec![0; 512 - map.len()], b"abcde"].concat();
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"2097152"),
    ];
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions(records).unwrap();
    add(&mut tar, F, b"GNUSparseFile.0/real", &content);
    let tar = tar.into_inner().unwrap();
    let mut bench = Bench::new();
    assert!(matches!(bench.unpack_upon("small", &tar, &[]), Err(OciError::TooLarge { .. })));
    bench.limits.size = 4 << 20;
    bench.unpack_upon("root", &tar, &[]).unwrap();
    let file = fs::read(bench.path("root/real")).unwrap();
    assert_eq!(
        (file.len(), &file[4096..4099], &file[1_048_576..1_048_578]),
        (2 << 20, &b"abc"[..], &b"de"[..])
    );
    assert!(fs::metadata(bench.path("root/real")).unwrap().blocks() * 512 < 1 << 20);

    for map in ["1\n0\n9\n", "1\n9999999999\n5\n", "2\n10\n3\n5\n2\n", "99999999\n", "x\n"] {
        let content = [map.as_bytes(), &vec![0; 512 - map.len()], b"abcde"].concat();
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions(records).unwrap();
        add(&mut tar, F, b"x", &content);
        assert!(bench.unpack_upon(&format!("bad{}", map.len()), &tar.into_inner().unwrap(), &[]).is_err());
    }
}

#[test]
fn real_sparse_tars_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("holes");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    for number in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 5], number * 200_000).unwrap();
    }
    for format in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let mut tar = std::process::Command::new("tar");
        tar.args(["--create", "--sparse", format]);
        if format.starts_with("--sparse") {
            tar.arg("--format=posix");
        }
        let output = tar.arg("--directory").arg(dir.path()).arg("holes").output().unwrap();
        assert!(output.status.success());
        let mut bench = Bench::new();
        bench.limits.size = 16 << 20;
        bench.unpack_upon("root", &output.stdout, &[]).unwrap();
        assert!(fs::read(bench.path("root/holes")).unwrap() == fs::read(&path).unwrap(), "{format}");
    }
}

#[test]
fn broken_archives_are_told() {
    let whole = tar(&[(F, "file", &"x".repeat(1000))]);
    for cut in [100, 512 + 100, 1024] {
        let error = Bench::new().unpack_upon("root", &whole[..cut], &[]).unwrap_err();
        assert!(matches!(error, OciError::Malformed { .. }), "{cut}: {error}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(Bench::new().unpack_upon("root", &flipped, &[]), Err(OciError::Malformed { .. })));
    // An extension that claims to be huge takes no memory.
    let mut huge = header(EntryType::XHeader, b"x");
    huge.set_size(1 << 40);
    huge.set_cksum();
    let error = Bench::new().unpack_upon("root", huge.as_bytes(), &[]).unwrap_err();
    assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
}

#[test]
fn permissions_are_not_inherited() {
    // What `setfacl -m d:u:1000:rwx` makes: entries of tag, bits and id after a version.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, bits, id) in
        [(1u16, 7u16, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes().into_iter().chain(bits.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.system.posix_acl_default", &acl[..])]).unwrap();
    add(&mut tar, D, b"d", b"");
    for (kind, name) in [(F, "d/f"), (D, "d/g"), (F, "d/implied/f"), (EntryType::Fifo, "d/p"), (F, "d/.wh.w")]
    {
        add(&mut tar, kind, name.as_bytes(), b"");
    }
    let mut bench = Bench::new();
    bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]).unwrap();
    let root = open_folder(CWD, bench.path("root")).unwrap();
    assert_eq!(xattrs_of(&root, b"d").unwrap(), [(b"system.posix_acl_default".to_vec(), acl)]);
    for name in ["d/f", "d/g", "d/implied", "d/p", "d/w"] {
        assert!(xattrs_of(&root, name.as_bytes()).unwrap().is_empty(), "{name}");
    }
    assert_eq!(fs::metadata(bench.path("root/d")).unwrap().mtime(), 1_000_000);
}

#[test]
fn the_archive_may_end_without_its_mark() {
    let whole = tar(&[(F, "file", "x")]);
    Bench::new().unpack_upon("root", &whole[..1024], &[]).unwrap();
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("..".to_owned()),
        Just(".wh.a".to_owned()),
        Just(".wh..wh..opq".to_owned()),
        Just(String::new()),
        "[a-c]{1,2}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(part(), 1..5).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        Just("/".to_owned()),
        Just("../outside".to_owned()),
        Just("../../../../tmp".to_owned())
    ]
}

/// Entries that get in each other's way, and a few flipped bytes.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![Just(F), Just(D), Just(S), Just(L), Just(EntryType::Fifo), Just(EntryType::Char)];
    let entries = proptest::collection::vec((kinds, name(), target()), 0..25);
    let flips = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    (entries, flips).prop_map(|(entries, flips)| {
        let entries: Vec<_> =
            entries.iter().map(|(kind, name, to)| (*kind, name.as_str(), to.as_str())).collect();
        let mut stream = tar(&entries);
        for (at, byte) in flips {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_stream_writes_outside(first in stream(), second in stream()) {
        let mut bench = Bench::new();
        // The bench looks at what is outside after each.
        let below = bench.unpack_upon("first", &first, &[]).is_ok();
        let _ = bench.unpack_upon("second", &second, if below { &["first"] } else { &[] });
        let mut names: Vec<_> = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["first", "outside", "second"]);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Bench::new().unpack_upon("root", &bytes, &[]);
        if let Ok(mut plain) = crate::compression::decompressed(&*bytes) {
            let _ = io::copy(&mut plain, &mut io::sink());
        }
    }

    #[test]
    fn no_extension_makes_it_panic(record in proptest::collection::vec(any::<u8>(), 0..600), is_pax: bool) {
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, if is_pax { EntryType::XHeader } else { EntryType::GNULongName }, b"x", &record);
        add(&mut tar, F, b"file", b"content");
        let _ = Bench::new().unpack_upon("root", &tar.into_inner().unwrap(), &[]);
    }
}
