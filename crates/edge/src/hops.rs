//! Ends requests that sandboxes send in circles: each time a request comes from a sandbox to a public host of one, its `CDN-Loop`
//! header (RFC 8586), which proxies pass on, gets one more entry, and with too many the request is refused.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// How often a request comes from a sandbox to another until it is refused.
const MAX_HOPS: usize = 16;
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// The name of this server in the header.
const OWN: &str = "cofferdam";

/// Whether a request has gone in circles.
pub(crate) fn is_loop(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CDN_LOOP).into_iter().filter_map(|value| value.to_str().ok());
    let entries = values.flat_map(|list| list.split(','));
    // An entry may have parameters.
    let own = entries.filter(|entry| entry.split(';').next().is_some_and(|id| id.trim() == OWN));
    own.take(MAX_HOPS).count() == MAX_HOPS
}

/// Notes that a request has come from a sandbox.
pub(crate) fn count(headers: &mut HeaderMap) {
    headers.append(CDN_LOOP, HeaderValue::from_static(OWN));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_passes_so_many_times_in_any_spelling_of_the_header() {
        let mut headers = HeaderMap::new();
        headers.append(CDN_LOOP, HeaderValue::from_static("other; v=1, cofferdam;x=\"y\" , xcofferdam"));
        for _ in 1..MAX_HOPS {
            assert!(!is_loop(&headers));
            count(&mut headers);
        }
        assert!(is_loop(&headers));
        let joined: Vec<_> =
            headers.get_all(CDN_LOOP).iter().filter_map(|value| value.to_str().ok()).collect();
        let joined = HeaderValue::from_str(&joined.join(",")).unwrap();
        headers.insert(CDN_LOOP, joined);
        assert!(is_loop(&headers), "a proxy may join the values");
    }
}
