//! Conditional and range requests of RFC 9110, for one range.
//! A request for several ranges gets the whole file, which the RFC allows.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};

/// What to respond with.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The whole file: 200.
    Whole,
    /// From the first to behind the last byte: 206.
    Part(u64, u64),
    /// No contents, since the client has them: 304.
    NotModified,
    /// No contents, since the client wanted another version: 412.
    PreconditionFailed,
    /// No contents, since the range is outside of the file: 416.
    NoSuchRange,
}

/// Whether a request has conditions or a range.
pub fn any(headers: &HeaderMap) -> bool {
    [RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// Decides what to respond with for a file with an ETag, modification time and size.
pub fn decide(headers: &HeaderMap, etag: &str, modified: SystemTime, size: u64) -> Decision {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |name| text(name).and_then(|value| httpdate::parse_http_date(value).ok());
    // Dates on the wire have whole seconds.
    let newer_than =
        |since: SystemTime| modified.duration_since(since).is_ok_and(|d| d >= Duration::from_secs(1));

    if let Some(tags) = text(IF_MATCH) {
        if !matches_tag(tags, etag) {
            return Decision::PreconditionFailed;
        }
    } else if date(IF_UNMODIFIED_SINCE).is_some_and(newer_than) {
        return Decision::PreconditionFailed;
    }
    if let Some(tags) = text(IF_NONE_MATCH) {
        if matches_tag(tags, etag) {
            return Decision::NotModified;
        }
    } else if date(IF_MODIFIED_SINCE).is_some_and(|since| !newer_than(since)) {
        return Decision::NotModified;
    }
    let Some(range) = text(RANGE) else { return Decision::Whole };
    if let Some(condition) = text(IF_RANGE) {
        let same = condition.trim() == etag || date(IF_RANGE).is_some_and(|since| !newer_than(since));
        if !same {
            return Decision::Whole;
        }
    }
    parse_range(range, size)
}

fn matches_tag(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn parse_range(range: &str, size: u64) -> Decision {
    let Some(spec) = range.trim().strip_prefix("bytes=") else { return Decision::Whole };
    if spec.contains(',') {
        return Decision::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Decision::NoSuchRange };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    if first.is_empty() {
        return match number(last) {
            Some(count) if count > 0 && size > 0 => Decision::Part(size.saturating_sub(count), size),
            _ => Decision::NoSuchRange,
        };
    }
    let end =
        if last.is_empty() { Some(size) } else { number(last).map(|last| last.saturating_add(1).min(size)) };
    match (number(first), end) {
        (Some(first), Some(end)) if first < end => Decision::Part(first, end),
        _ => Decision::NoSuchRange,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"1-a\"";

    fn ask(pairs: &[(HeaderName, &str)]) -> Decision {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        decide(&headers, TAG, SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500), 10)
    }

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-3", Decision::Part(0, 4)),
            ("bytes=4-", Decision::Part(4, 10)),
            ("bytes=-3", Decision::Part(7, 10)),
            ("bytes=-30", Decision::Part(0, 10)),
            ("bytes=8-99", Decision::Part(8, 10)),
            ("bytes=10-", Decision::NoSuchRange),
            ("bytes=3-2", Decision::NoSuchRange),
            ("bytes=x-2", Decision::NoSuchRange),
            ("bytes=0-1,3-4", Decision::Whole),
            ("lines=0-1", Decision::Whole),
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
        assert_eq!(ask(&[(IF_MODIFIED_SINCE, same)]), Decision::NotModified);
        assert_eq!(ask(&[(IF_MODIFIED_SINCE, older)]), Decision::Whole);
        assert_eq!(ask(&[(IF_UNMODIFIED_SINCE, older)]), Decision::PreconditionFailed);
        assert_eq!(ask(&[(IF_UNMODIFIED_SINCE, newer)]), Decision::Whole);
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"x\", W/\"1-a\"")]), Decision::NotModified);
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, same)]), Decision::Whole);
        assert_eq!(ask(&[(IF_MATCH, "\"x\"")]), Decision::PreconditionFailed);
        assert_eq!(ask(&[(RANGE, "bytes=0-0"), (IF_RANGE, "\"x\"")]), Decision::Whole);
        assert_eq!(ask(&[(RANGE, "bytes=0-0"), (IF_RANGE, TAG)]), Decision::Part(0, 1));
    }

    proptest! {
        #[test]
        fn parts_lie_within(range in "bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Decision::Part(first, end) = parse_range(&range, size) {
                prop_assert!(first < end && end <= size);
            }
        }
    }
}
