//! Random streams: nothing panics, and nothing is written outside of the layer.
//! Entries are made to get in each other's way; some bytes are flipped.
//! Histories that make sense are in `tests/integration/differential.rs`.

use proptest::prelude::*;

use super::*;

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
