use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn framed(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    let body = [&[kind][..], &id.to_be_bytes(), &fields.concat()].concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn path(path: &Path) -> Vec<u8> {
    text(path.as_os_str().as_bytes())
}

/// The responses to requests: types and contents.
fn responses(requests: &[Vec<u8>]) -> Vec<(u8, Vec<u8>)> {
    let mut output = Vec::new();
    serve(&requests.concat()[..], &mut output).unwrap();
    let (mut found, mut rest) = (Vec::new(), &output[..]);
    while let Some((length, after)) = rest.split_at_checked(4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let (packet, after) = after.split_at(length);
        found.push((packet[0], packet[1..].to_vec()));
        rest = after;
    }
    found
}

fn code(response: &(u8, Vec<u8>)) -> u32 {
    assert_eq!(response.0, 101, "{response:?}");
    u32::from_be_bytes(response.1[4..8].try_into().unwrap())
}

#[test]
fn a_file_is_written_read_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file\n\u{e4}");
    let handle = text(&1u32.to_be_bytes());
    let seen = responses(&[
        framed(1, 3, &[]),
        framed(
            3,
            1,
            &[&path(&file), &(2u32 | 8 | 16).to_be_bytes(), &4u32.to_be_bytes(), &0o640u32.to_be_bytes()],
        ),
        framed(6, 2, &[&handle, &5u64.to_be_bytes(), &text(b"world")]),
        framed(6, 3, &[&handle, &0u64.to_be_bytes(), &text(b"hello")]),
        framed(4, 4, &[&handle]),
        framed(4, 5, &[&handle]),
        framed(17, 6, &[&path(&file)]),
        framed(3, 7, &[&path(&file), &1u32.to_be_bytes(), &0u32.to_be_bytes()]),
        framed(5, 8, &[&text(&2u32.to_be_bytes()), &3u64.to_be_bytes(), &100u32.to_be_bytes()]),
        framed(5, 9, &[&text(&2u32.to_be_bytes()), &10u64.to_be_bytes(), &100u32.to_be_bytes()]),
    ]);
    assert_eq!(seen[0].0, 2);
    assert_eq!(seen[1].0, 102);
    assert_eq!([2, 3, 4, 5].map(|at| code(&seen[at])), [0, 0, 0, 4]);
    assert_eq!(std::fs::read(&file).unwrap(), b"helloworld");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(seen[6].1[8..16], 10u64.to_be_bytes());
    assert_eq!(seen[8].1[8..], *b"loworld");
    assert_eq!(code(&seen[9]), 1);
}

#[test]
fn directories_are_made_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (inner, link) = (dir.path().join("inner"), dir.path().join("link"));
    let none = 0u32.to_be_bytes();
    let handle = text(&1u32.to_be_bytes());
    let seen = responses(&[
        framed(14, 1, &[&path(&inner), &none]),
        framed(20, 2, &[&text(b"inner"), &path(&link)]),
        framed(11, 3, &[&path(dir.path())]),
        framed(12, 4, &[&handle]),
        framed(12, 5, &[&handle]),
        framed(16, 6, &[&path(&link)]),
        framed(19, 7, &[&path(&link)]),
        framed(18, 8, &[&path(&link), &path(&inner)]),
        framed(15, 9, &[&path(&inner)]),
        framed(7, 10, &[&path(&inner)]),
        framed(200, 11, &[&text(b"unknown@example.org")]),
        framed(99, 12, &[]),
    ]);
    assert_eq!([0, 1].map(|at| code(&seen[at])), [0, 0]);
    assert_eq!(seen[3].1[4..8], 2u32.to_be_bytes());
    let listed = String::from_utf8_lossy(&seen[3].1).into_owned();
    assert!(listed.contains("drwx") && listed.contains("lrwx"), "{listed}");
    assert_eq!(code(&seen[4]), 1);
    let real = std::fs::canonicalize(dir.path()).unwrap().join("inner");
    assert!(seen[5].1.ends_with(&[path(&real), path(&real), none.to_vec()].concat()));
    assert!(seen[6].1.ends_with(&[text(b"inner"), text(b"inner"), none.to_vec()].concat()));
    // What exists is not replaced; what is gone is not found; what is unknown is said to be.
    assert_eq!([7, 8, 9, 10, 11].map(|at| code(&seen[at])), [4, 0, 2, 8, 8]);
}

#[test]
fn open_files_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let requests: Vec<_> = (0..300).map(|id| framed(11, id, &[&path(dir.path())])).collect();
    let seen = responses(&requests);
    assert_eq!(seen.iter().filter(|(kind, _)| *kind == 102).count(), MAX_HANDLES);
    assert_eq!(code(&seen[299]), 4);
}

proptest! {
    /// Any bytes get a response, or end the session: nothing panics, and no path is touched that a client did not name.
    #[test]
    fn anything_may_be_sent(kind in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
        // Requests that change files by a random name are left out.
        prop_assume!(![3, 6, 9, 13, 14, 15, 18, 20, 200].contains(&kind));
        let mut output = Vec::new();
        let _ = serve(&framed(kind, 7, &[&body])[..], &mut output);
        prop_assert!(output.len() >= 9);
        let _ = serve(&body[..], &mut output);
    }
}
