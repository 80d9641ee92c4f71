//! Parsers of request parts, tested with the corpus and mutations of it: multipart, paths, signed links, timestamps.
//! The functions are called directly, so that thousands of inputs take little time and change nothing.

#![allow(missing_docs)]

use std::path::{Component, Path, PathBuf};

use crate::common::corpus;
use bytes::Bytes;
use envd::auth::{self, AuthError, SignedLink};
use envd::rest::RestError;
use envd::rest::multipart::{Multipart, Part, Pieces};
use envd::{clock, paths};
use envd_api::query::Query;
use http::HeaderMap;
use proptest::prelude::*;

struct Given(std::vec::IntoIter<Bytes>);

impl Pieces for Given {
    async fn next(&mut self) -> Result<Option<Bytes>, RestError> {
        Ok(self.0.next())
    }
}

type Parts = Vec<(Part, Vec<u8>)>;

/// Returns the parts of a form, and the error if it ends with one. The form's first line is its content type.
fn parts(form: &[u8], piece: usize) -> (Parts, Option<String>) {
    let end = form.iter().position(|&byte| byte == b'\n').unwrap_or(form.len());
    let body = form.get(end + 1..).unwrap_or_default();
    let content_type = String::from_utf8_lossy(&form[..end]).into_owned();
    let pieces: Vec<Bytes> = body.chunks(piece).map(Bytes::copy_from_slice).collect();
    let mut parts = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let read = async {
        let mut multipart = Multipart::new(Given(pieces.into_iter()), &content_type)?;
        while let Some(part) = multipart.next_part().await? {
            parts.push((part, Vec::new()));
            while let Some(bytes) = multipart.chunk().await? {
                parts.last_mut().expect("pushed just now").1.extend_from_slice(&bytes);
            }
        }
        Ok::<_, RestError>(())
    };
    let error = runtime.block_on(read).err().map(|error| error.message);
    (parts, error)
}

/// Describes the outcome of a form in one line.
fn outcome(form: &[u8], piece: usize) -> String {
    let (parts, error) = parts(form, piece);
    let mut words: Vec<String> = parts
        .iter()
        .map(|(part, content)| format!("{:?} {:?} {}", part.name, part.filename, content.len()))
        .collect();
    words.push(error.unwrap_or_else(|| "end".to_owned()));
    words.join(" | ")
}

#[test]
fn forms_of_the_corpus_are_read_as_before() {
    let expected = corpus::lines("forms.tsv");
    let forms = corpus::dir("multipart");
    assert_eq!(forms.len(), expected.len(), "a line of forms.tsv for each form");
    for ((name, form), expected) in forms.iter().zip(expected) {
        for piece in [form.len(), 7, 1] {
            assert_eq!(format!("{name}\t{}", outcome(form, piece)), expected);
        }
    }
}

#[test]
fn forms_are_parsed_the_same_in_any_pieces() {
    let seeds = corpus::dir("multipart").into_iter().map(|(_, form)| form);
    let seeds = corpus::bred(seeds.filter(|form| form.len() < 10_000).collect());
    corpus::throw(2000, (seeds, 1usize..100), |(form, piece)| {
        let (whole, error) = parts(&form, form.len().max(1));
        let (pieced, other) = parts(&form, piece);
        prop_assert_eq!(&error, &other);
        // How much of a part was returned before the form turned out to be malformed depends on the pieces.
        let complete = whole.len() - usize::from(error.is_some() && !whole.is_empty());
        prop_assert_eq!(&whole[..complete], &pieced[..complete]);
        prop_assert!(whole.iter().map(|(_, content)| content.len()).sum::<usize>() <= form.len());
        Ok(())
    });
}

const HOME: &str = "/home/user";

fn resolve(path: &str) -> Result<PathBuf, paths::PathError> {
    paths::resolve(path, Path::new(HOME), Some("/work"))
}

#[test]
fn paths_of_the_corpus_resolve_as_expected() {
    for line in corpus::lines("paths.jsonl") {
        let (path, expected): (String, Option<PathBuf>) = serde_json::from_str(&line).expect("a pair");
        assert_eq!(resolve(&path).ok(), expected, "{path:?}");
    }
}

#[test]
fn any_path_is_clean_or_rejected() {
    let seeds = corpus::lines("paths.jsonl").into_iter().map(|line| {
        let (path, _): (String, Option<PathBuf>) = serde_json::from_str(&line).expect("a pair");
        path.into_bytes()
    });
    corpus::throw(4000, corpus::bred(seeds.collect()), |path| {
        let path = String::from_utf8_lossy(&path);
        let Ok(resolved) = resolve(&path) else { return Ok(()) };
        prop_assert!(resolved.is_absolute());
        prop_assert!(resolved.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
        prop_assert!(!resolved.as_os_str().as_encoded_bytes().contains(&0));
        prop_assert!(resolved.as_os_str().len() < 4096);
        prop_assert_eq!(paths::clean(&resolved), resolved.clone());
        // Only absolute paths and `..` leave the home.
        if !path.starts_with('/') && !path.contains("..") && !path.is_empty() {
            prop_assert!(resolved.starts_with(HOME));
        }
        Ok(())
    });
}

const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
const NOW: i64 = 1_000_000_000;

fn verdict(query: &str) -> &'static str {
    let query = Query::parse(Some(query));
    let Ok(link) = SignedLink::from_query(&query, envd_api::Operation::Read) else { return "malformed" };
    match auth::check_link(Some(TOKEN), &HeaderMap::new(), link, NOW) {
        Ok(()) => "good",
        Err(AuthError::NoSignature) => "missing",
        Err(AuthError::Signature) => "invalid",
        Err(AuthError::Expired) => "expired",
        Err(other) => panic!("not for a link: {other}"),
    }
}

fn links() -> Vec<(String, String)> {
    let pair = |line: String| {
        let (verdict, query) = line.split_once('\t').expect("a verdict and a query");
        (verdict.to_owned(), query.to_owned())
    };
    corpus::lines("links.tsv").into_iter().map(pair).collect()
}

#[test]
fn links_of_the_corpus_are_judged_as_before() {
    for (expected, query) in links() {
        assert_eq!(verdict(&query), expected, "{query}");
    }
}

#[test]
fn changed_links_are_not_valid_for_other_files() {
    let parts = |query: &str| {
        let query = Query::parse(Some(query));
        let link = SignedLink::from_query(&query, envd_api::Operation::Read).ok()?;
        let link = link.link;
        Some((link.path.to_owned(), link.username.to_owned(), link.expiration))
    };
    let signed: Vec<_> =
        links().iter().filter(|(verdict, _)| verdict == "good").map(|(_, q)| parts(q)).collect();
    let seeds = links().into_iter().map(|(_, query)| query.into_bytes()).collect();
    corpus::throw(4000, corpus::bred(seeds), |query| {
        let query = String::from_utf8_lossy(&query);
        if verdict(&query) == "good" {
            prop_assert!(signed.contains(&parts(&query)), "{:?} was never signed", parts(&query));
        }
        Ok(())
    });
}

#[test]
fn any_timestamp_is_parsed_or_rejected() {
    let seeds = [
        "2026-01-01T00:00:00Z",
        "2016-12-31t23:59:60.5+23:59",
        "0000-02-30 00:00:00.123456789123-00:00",
        "9999-12-31T23:59:59.999999999Z",
    ];
    let seeds = seeds.iter().map(|text| text.as_bytes().to_vec()).collect();
    corpus::throw(4000, corpus::bred(seeds), |text| {
        let text = String::from_utf8_lossy(&text);
        if let Some(nanos) = clock::parse_rfc3339(&text) {
            // From the year 0 to the end of 9999, and a day for time zones around it.
            prop_assert!(
                (-62_167_305_600..=253_402_387_200).contains(&nanos.div_euclid(1_000_000_000)),
                "{}",
                text
            );
        }
        Ok(())
    });
}
