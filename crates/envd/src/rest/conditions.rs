//! Conditional and range requests, as RFC 9110 has them, for one range.
//! A request for several ranges gets the whole, which the RFC allows.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};

/// What to answer with.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// All of it, 200.
    Whole,
    /// From the first to behind the last byte, 206.
    Part(u64, u64),
    /// Nothing, the client has it: 304.
    NotModified,
    /// Nothing, the client wanted another version: 412.
    PreconditionFailed,
    /// Nothing, no such bytes: 416.
    NoSuchRange,
}

/// Whether a request has conditions or a range at all.
pub fn any(headers: &HeaderMap) -> bool {
    [RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// Decides for a file of that tag, time and size.
pub fn decide(headers: &HeaderMap, etag: &str, modified: SystemTime, size: u64) -> Answer {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |name| text(name).and_then(|value| httpdate::parse_http_date(value).ok());
    // Dates on the wire have whole seconds.
    let newer_than =
        |since: SystemTime| modified.duration_since(since).is_ok_and(|d| d >= Duration::from_secs(1));

    if let Some(tags) = text(IF_MATCH) {
        if !matches_tag(tags, etag) {
            return Answer::PreconditionFailed;
        }
    } else if date(IF_UNMODIFIED_SINCE).is_some_and(newer_than) {
        return Answer::PreconditionFailed;
    }
    if let Some(tags) = text(IF_NONE_MATCH) {
        if matches_tag(tags, etag) {
            return Answer::NotModified;
        }
    } else if date(IF_MODIFIED_SINCE).is_some_and(|since| !newer_than(since)) {
        return Answer::NotModified;
    }
    let Some(range) = text(RANGE) else { return Answer::Whole };
    if let Some(condition) = text(IF_RANGE) {
        let same = condition.trim() == etag || date(IF_RANGE).is_some_and(|since| !newer_than(since));
        if !same {
            return Answer::Whole;
        }
    }
    parse_range(range, size)
}

fn matches_tag(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn parse_range(range: &str, size: u64) -> Answer {
    let Some(spec) = range.trim().strip_prefix("bytes=") else { return Answer::Whole };
    if spec.contains(',') {
        return Answer::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Answer::NoSuchRange };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    if first.is_empty() {
        return match number(last) {
            Some(count) if count > 0 && size > 0 => Answer::Part(size.saturating_sub(count), size),
            _ => Answer::NoSuchRange,
        };
    }
    let end =
        if last.is_empty() { Some(size) } else { number(last).map(|last| last.saturating_add(1).min(size)) };
    match (number(first), end) {
        (Some(first), Some(end)) if first < end => Answer::Part(first, end),
        _ => Answer::NoSuchRange,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"1-a\"";

    fn ask(pairs: &[(HeaderName, &str)]) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        decide(&headers, TAG, SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500), 10)
    }

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-3", Answer::Part(0, 4)),
            ("bytes=4-", Answer::Part(4, 10)),
            ("bytes=-3", Answer::Part(7, 10)),
            ("bytes=-30", Answer::Part(0, 10)),
            ("bytes=8-99", Answer::Part(8, 10)),
            ("bytes=10-", Answer::NoSuchRange),
            ("bytes=3-2", Answer::NoSuchRange),
            ("bytes=x-2", Answer::NoSuchRange),
            ("bytes=0-1,3-4", Answer::Whole),
            ("lines=0-1", Answer::Whole),
        ] {
            assert_eq!(ask(&[(RANGE, range)]), expected, "{range}");
        }
    }

    #[test]
    fn conditions() {
        let (same, older, newer) = (
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:36 GMT",
            "Sun, 06 Nov 1994 08:49:38 GMT",
        );
        assert_eq!(ask(&[(IF_MODIFIED_SINCE, same)]), Answer::NotModified);
        assert_eq!(ask(&[(IF_MODIFIED_SINCE, older)]), Answer::Whole);
        assert_eq!(ask(&[(IF_UNMODIFIED_SINCE, older)]), Answer::PreconditionFailed);
        assert_eq!(ask(&[(IF_UNMODIFIED_SINCE, newer)]), Answer::Whole);
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"x\", W/\"1-a\"")]), Answer::NotModified);
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, same)]), Answer::Whole);
        assert_eq!(ask(&[(IF_MATCH, "\"x\"")]), Answer::PreconditionFailed);
        assert_eq!(ask(&[(RANGE, "bytes=0-0"), (IF_RANGE, "\"x\"")]), Answer::Whole);
        assert_eq!(ask(&[(RANGE, "bytes=0-0"), (IF_RANGE, TAG)]), Answer::Part(0, 1));
    }

    proptest! {
        #[test]
        fn parts_lie_within(range in "bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Answer::Part(first, end) = parse_range(&range, size) {
                prop_assert!(first < end && end <= size);
            }
        }
    }
}
