//! What entries become: overlay form, attributes, and what the layers below say.
//! What an archive says in overlayfs' own words is never taken.
//! Names are in `names`.

use super::*;

#[test]
fn whiteouts_and_opaque_dirs_take_overlay_form() {
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
    for dir in ["hidden", "first", "second", "implied"] {
        assert!(bench.is_opaque(&format!("root/{dir}")), "{dir}");
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
fn whiteouts_in_what_is_no_dir_any_more_say_nothing() {
    let mut bench = Bench::new();
    let below = [(D, "d", ""), (D, "d/e", ""), (F, "d/e/f", ""), (D, "s", ""), (D, "t", ""), (F, "t/x", "")];
    bench.unpack_upon("a", &tar(&below), &[]).unwrap();
    let above = [
        // The directory's whiteout after one in it, and before one in it.
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
    let root = open_dir(CWD, bench.path("root")).unwrap();
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
    let mut dir = self::header(D, b"dir");
    dir.set_mode(0o3777);
    dir.set_cksum();
    tar.append(&dir, &[][..]).unwrap();
    tar.append_pax_extensions([("mtime", &b"5.25"[..])]).unwrap();
    add(&mut tar, F, b"dir/file", b"x");
    let mut bench = Bench::new();
    bench.unpack_upon("root", &tar.into_inner().unwrap(), &[]).unwrap();
    let file = fs::metadata(bench.path("root/file")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime()),
        (1000, 65_534, 0o6751, 1_000_000)
    );
    let dir = fs::metadata(bench.path("root/dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o3777, 1_000_000));
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
fn an_opaque_dir_below_hides_what_is_further_below() {
    let mut bench = Bench::new();
    bench.unpack_upon("a", &tar(&[(D, "d", ""), (F, "d/x", "old")]), &[]).unwrap();
    bench.unpack_upon("b", &tar(&[(D, "d", ""), (F, "d/.wh..wh..opq", "")]), &["a"]).unwrap();
    let answer = bench.unpack_upon("c", &tar(&[(D, "e", ""), (L, "e/l", "d/x")]), &["b", "a"]);
    assert!(matches!(answer, Err(OciError::Entry { .. })));
}
