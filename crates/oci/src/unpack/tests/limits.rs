//! What an archive may cost, and archives that are broken.
//! Also the forms of tar that few tools write: sparse files, long names.
//! Random streams are in `random`.

use super::*;

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

    // Directories that nothing stands for are counted.
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
    let root = open_dir(CWD, bench.path("root")).unwrap();
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
