//! The corpus of inputs beside the tests, and random mutations of it.
//! `COFFERDAM_FUZZ_CASES` sets the number of random inputs; by default it is small.
//! A failure prints its smallest input, to be added to the corpus once it is fixed.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestError, TestRunner};

/// Bytes that parsers treat specially.
const WORDS: [&[u8]; 16] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff",
    b"\"",
    b"\\",
    b"{",
    b"]",
    b":",
    b"%",
    b"--",
    b"../",
    b"99999999999999999999",
    b"-1",
    b"null",
    b"\\ud800",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

/// Returns the files of a directory of the corpus, by name.
pub fn dir(name: &str) -> Vec<(String, Vec<u8>)> {
    let read = |entry: std::fs::DirEntry| {
        let name = entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(entry.path()).expect("readable"))
    };
    let mut files: Vec<_> = std::fs::read_dir(path(name)).expect("the corpus").flatten().map(read).collect();
    files.sort();
    assert!(files.len() > 20, "{name}: the corpus is not there");
    files
}

/// Returns the lines of a file of the corpus.
pub fn lines(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path(name)).expect("the corpus");
    text.lines().map(str::to_owned).collect()
}

/// Inputs of the corpus with some bytes changed, dropped, added or repeated, truncated, or joined with another input.
pub fn bred(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let other = select(seeds.clone());
    let word =
        prop_oneof![select(&WORDS[..]).prop_map(<[u8]>::to_vec), any::<u8>().prop_map(|byte| vec![byte])];
    let change = (0..7u8, any::<Index>(), any::<Index>(), word);
    (select(seeds), other, prop::collection::vec(change, 0..5)).prop_map(|(mut bytes, other, changes)| {
        for (kind, from, to, word) in changes {
            let (from, to) = (from.index(bytes.len() + 1), to.index(bytes.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            match kind {
                0 => drop(bytes.splice(from..to.min(from + word.len()), word)),
                1 => drop(bytes.splice(from..from, word)),
                2 => drop(bytes.drain(from..to)),
                3 => bytes.extend_from_within(from..to),
                4 => bytes.truncate(from),
                5 => drop(bytes.splice(from.., other[from.min(other.len())..].iter().copied())),
                _ => bytes.iter_mut().skip(from).take(1).for_each(|byte| *byte ^= 1 << (to % 8)),
            }
        }
        bytes
    })
}

/// Runs a test with `count` inputs, or as many as the environment variable says.
pub fn throw<T: std::fmt::Debug>(
    cases: u32,
    inputs: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let cases = match std::env::var("COFFERDAM_FUZZ_CASES") {
        Ok(text) => text.parse().expect("COFFERDAM_FUZZ_CASES is a number"),
        Err(_) => cases,
    };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    match runner.run(&inputs, test) {
        Ok(()) => {}
        Err(TestError::Fail(reason, input)) => panic!("{reason}\nfor {input:?}"),
        Err(error) => panic!("{error}"),
    }
}
