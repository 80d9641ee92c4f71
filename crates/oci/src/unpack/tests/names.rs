//! Where entries end up: names, symlinks and hard links, several entries of one name.
//! Nothing may end up outside of the layer.
//! Whiteouts are in `marks`.

use super::*;

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
